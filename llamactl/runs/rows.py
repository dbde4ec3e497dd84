"""The known fields of a log's rows, and a decoder of many rows at once."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, NotRequired, get_type_hints

import msgspec
import numpy as np
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from llamactl.storage.records import Count

Number = Annotated[float | None, Field(strict=True)]


@with_config(ConfigDict(extra="allow", strict=True))
class Row(TypedDict):
    """The known fields of a row: its kind and step, and the types of the optional fields."""

    kind: str
    step: Count
    tokens: NotRequired[Count]
    memory: NotRequired[Count | None]
    steps: NotRequired[Count]
    different: NotRequired[Count]
    from_step: NotRequired[Count]
    signal: NotRequired[Count]
    flops: NotRequired[Number]
    seconds: NotRequired[Number]
    loss: NotRequired[Number]
    lr: NotRequired[Number]
    grad_norm: NotRequired[Number]
    tokens_per_second: NotRequired[Number]
    mfu: NotRequired[Number]
    bits_per_byte: NotRequired[Number]
    bits_per_byte_error: NotRequired[Number]
    loss_error: NotRequired[Number]
    eval_tokens: NotRequired[Count]
    usual: NotRequired[Number]
    largest: NotRequired[Number]
    path: NotRequired[str]
    why: NotRequired[str]
    prompt: NotRequired[str]
    text: NotRequired[str]
    damaged: NotRequired[list[str]]
    differs: NotRequired[list[str]]
    changed: NotRequired[list[str]]
    lowest_loss: NotRequired[Number]
    validations: NotRequired[Count]


# The step and some numbers of each row of a kind, as columns.
Block = tuple[np.ndarray, ...]

# All numbers without a fraction are counts: `Row` as pydantic knows it.
_COUNT = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_TYPES: dict[Any, Any] = {int: _COUNT, int | None: _COUNT | None}
_FIELDS = {name: _TYPES.get(hint, hint) for name, hint in get_type_hints(Row).items()}
_OPTIONAL = [(name, _FIELDS[name] | msgspec.UnsetType, msgspec.UNSET) for name in sorted(Row.__optional_keys__)]
_DECODER: Any = msgspec.json.Decoder(
    msgspec.defstruct("KnownRow", [("kind", str), ("step", _COUNT), *_OPTIONAL], forbid_unknown_fields=True, gc=False)
)


def decode_rows(lines: bytes, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Block] | None:
    """Decode a block of complete lines and return some fields of the rows of some kinds.

    None where a row must be looked at on its own: it has an unknown or a wrong field, lacks one that is wanted, or has a
    number that is not finite. It takes less than half the time of pydantic, which accepts whatever this does.
    """
    try:
        decoded = _DECODER.decode_lines(lines)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    # An empty line, or one that a row continues on, is not a row.
    if len(decoded) != lines.count(b"\n"):
        return None
    rows: dict[str, list[Any]] = {kind: [] for kind in wanted}
    for row in decoded:
        if row.kind in rows:
            rows[row.kind].append(row)
    try:
        return {kind: tuple(_column(found, name) for name in ("step", *wanted[kind])) for kind, found in rows.items()}
    except TypeError:  # a field that is null or unset
        return None


def _column(rows: list[Any], name: str) -> np.ndarray:
    # Without a tuple for each row, which would wake the garbage collector.
    return np.fromiter(map(attrgetter(name), rows), np.int64 if name == "step" else np.float64, len(rows))

"""Read the logs of a run: each row is validated where it is read, and no reader holds more rows than its caller asked for.

A log may have millions of rows and may come from an untrusted source. Known fields of a row have the right type, otherwise the
error names the file, the line and the field; a number that is not finite is read as None.
"""

import math
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from llamactl.errors import DataError
from llamactl.storage.records import Count, explain_error, open_file

LONGEST_ROW = 1 << 24  # bytes per line
CHUNK = 1 << 20  # bytes per read

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


_ROW = TypeAdapter(Row)

Columns = dict[str, np.ndarray]
T = TypeVar("T")


def parse_row(line: bytes) -> dict[str, Any]:
    """Validate one line of a log and return it as a row; raises ValueError that names the field."""
    try:
        row: Any = _ROW.validate_json(line)
    except ValidationError as error:
        raise ValueError(explain_error(error)) from error
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def read_rows(path: Path, root: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a log from its beginning; raises DataError that names the line. A missing log has no rows.

    An incomplete last line, left by a process that was killed, is skipped.
    """
    yield from _read(path, root, parse_row)


def read_columns(path: Path, wanted: Mapping[str, tuple[str, ...]], root: Path | None = None) -> dict[str, Columns]:
    """Read numeric fields of some kinds of rows as arrays, sorted by step; for repeated steps the last row counts.

    A number that is not finite becomes NaN. Raises DataError that names the line when a row lacks a field.
    """
    steps = {kind: array("q") for kind in wanted}
    fields = {kind: {name: array("d") for name in names} for kind, names in wanted.items()}

    def take(line: bytes) -> None:
        row: Any = _ROW.validate_json(line)
        kind = row["kind"]
        if kind not in steps:
            return
        for name, column in fields[kind].items():
            if name not in row:
                raise ValueError(f"{name} is missing from a row of the kind {kind!r}.")
            column.append(math.nan if row[name] is None else row[name])
        steps[kind].append(row["step"])

    for _ in _read(path, root, take):
        pass
    return {kind: _ordered(np.asarray(steps[kind]), fields[kind]) for kind in wanted}


def last_rows(path: Path, kinds: tuple[str, ...], root: Path | None = None) -> dict[str, dict[str, Any]]:
    """Read the last row of each kind, searching backwards from the end of a log; raises DataError."""
    found: dict[str, dict[str, Any]] = {}
    if not os.path.lexists(path):
        return found
    missing = {kind: f'"{kind}"'.encode() for kind in kinds}
    with open_file(path, root) as file:
        for number, lines in enumerate(_backwards(file, path)):
            # The last row is always parsed, to check that the file is a log; other rows only if they contain a wanted kind.
            place = len(lines) - 1 if number == 0 else _find_last(lines, missing, len(lines))
            while place >= 0:
                at = lines.rfind(b"\n", 0, place) + 1
                row = _parse_last(path, lines[at : lines.find(b"\n", place)])
                if missing.pop(row["kind"], None):
                    found[row["kind"]] = row
                place = _find_last(lines, missing, at)
            if not missing:
                break
    return found


def _find_last(lines: bytes, words: Mapping[str, bytes], end: int) -> int:
    """Find the last occurrence of any of the words before `end`; returns -1 when there is none."""
    return max((lines.rfind(word, 0, end) for word in words.values()), default=-1)


def _parse_last(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return parse_row(line)
    except ValueError as error:
        raise DataError(f"{path} is damaged.", f"One of its last rows: {error}") from error


def whole_lines(file: BinaryIO, path: Path) -> int:
    """Return the size in bytes of a file's complete lines; raises DataError when the incomplete last line is too long."""
    end = size = file.seek(0, os.SEEK_END)
    while end > 0:
        if size - end > LONGEST_ROW:
            raise DataError(f"{path} is damaged.", f"Its last line has more than {LONGEST_ROW:,} bytes.")
        start = max(0, end - CHUNK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _read(path: Path, root: Path | None, parse: Callable[[bytes], T]) -> Iterator[T]:
    """Yield the parsed lines of a log; a missing log has none. Raises DataError that names the line."""
    if not os.path.lexists(path):
        return
    with open_file(path, root) as file:
        number = 0
        while (line := file.readline(LONGEST_ROW)).endswith(b"\n"):
            number += 1
            try:
                yield parse(line)
            except ValidationError as error:
                raise DataError(f"{path}, line {number}, is damaged.", explain_error(error)) from error
            except ValueError as error:
                raise DataError(f"{path}, line {number}, is damaged.", str(error)) from error
        if len(line) == LONGEST_ROW:
            raise DataError(f"{path}, line {number + 1}, is damaged.", f"It has more than {LONGEST_ROW:,} bytes.")


def _backwards(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield blocks of complete lines, including line ends, from the end of the file to its beginning."""
    at, rest = whole_lines(file, path), b""
    while at > 0:
        start = max(0, at - CHUNK)
        file.seek(start)
        piece = file.read(at - start) + rest
        at, cut = start, piece.find(b"\n") + 1 if start else 0
        # A block without a line end before its last byte is part of a line that begins in an earlier block.
        rest, whole = (piece, b"") if cut == len(piece) else (piece[:cut], piece[cut:])
        if len(rest) > LONGEST_ROW:
            raise DataError(f"{path} is damaged.", f"A line has more than {LONGEST_ROW:,} bytes.")
        if whole:
            yield whole


def _ordered(steps: np.ndarray, fields: Mapping[str, "array[float]"]) -> Columns:
    """Sort the columns by step, and keep the last row of each step."""
    order = np.argsort(steps, kind="stable")
    last = np.append(np.diff(steps[order]) != 0, True)[: len(order)]
    kept = order[last]
    return {"step": steps[kept], **{name: np.asarray(column)[kept] for name, column in fields.items()}}

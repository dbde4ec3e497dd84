"""Events of a run. Their kinds and fields are the rows of metrics.jsonl, so renaming one changes a file format."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args


@dataclass(frozen=True)
class Progress:
    """Base of all events: steps, tokens, model FLOPs and seconds of training so far."""

    kind: ClassVar[str] = ""
    step: int
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Stepped(Progress):
    """An optimizer step: loss in nats per token before the update, gradient norm before clipping, peak memory in bytes."""

    kind: ClassVar[str] = "step"
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory: int


@dataclass(frozen=True)
class Skipped(Progress):
    """A step whose loss or gradient was not finite; the weights were not updated."""

    kind: ClassVar[str] = "skipped"
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Validated(Progress):
    """Validation on held-out text: loss in nats per token, and bits per byte of text.

    `eval_tokens` were measured, the same at each validation of a run; `loss_error` is the standard error that follows from so
    few. Rows of earlier versions have neither.
    """

    kind: ClassVar[str] = "validation"
    loss: float
    bits_per_byte: float
    eval_tokens: int = 0
    loss_error: float = math.nan


@dataclass(frozen=True)
class Evaluated(Validated):
    """The last checkpoint on the whole validation split, as `llamactl eval` measures it, with errors over documents."""

    kind: ClassVar[str] = "evaluation"
    bits_per_byte_error: float = math.nan


@dataclass(frozen=True)
class Sampled(Progress):
    """A sample after a prompt, drawn with the same seed each time."""

    kind: ClassVar[str] = "sample"
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved(Progress):
    """A checkpoint is on disk."""

    kind: ClassVar[str] = "saved"
    path: str


@dataclass(frozen=True)
class Resumed(Progress):
    """The run resumes from a checkpoint; `damaged` describes newer ones that could not be loaded.

    `differs` lists changes of the environment since the checkpoint, which may change the numbers in their last bits;
    `changed` lists settings that were changed.
    """

    kind: ClassVar[str] = "resumed"
    damaged: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replayed(Progress):
    """Steps logged before an interruption were repeated; `different` of them have another loss, by up to `largest` nats."""

    kind: ClassVar[str] = "replayed"
    steps: int
    different: int
    largest: float


@dataclass(frozen=True)
class RolledBack(Progress):
    """The run rolled back to this step, and skips the data that led to losses or weights that are not finite."""

    kind: ClassVar[str] = "rolled back"
    from_step: int


@dataclass(frozen=True)
class Spiked(Progress):
    """The loss is far above `usual`, that of recent steps."""

    kind: ClassVar[str] = "spike"
    loss: float
    usual: float


@dataclass(frozen=True)
class EndedEarly(Progress):
    """The run ended before its budget: so many validations had no lower loss than `lowest_loss`."""

    kind: ClassVar[str] = "ended early"
    lowest_loss: float
    validations: int


@dataclass(frozen=True)
class Stopped(Progress):
    """A signal stopped the run early, with a checkpoint."""

    kind: ClassVar[str] = "stopped"
    signal: int


@dataclass(frozen=True)
class Degraded(Progress):
    """The run continues, slower than planned or without a tracker."""

    kind: ClassVar[str] = "slowed"
    why: str


@dataclass(frozen=True)
class Warned(Progress):
    """The run ended, and its losses show that it did not learn as it should."""

    kind: ClassVar[str] = "warning"
    why: str


Event = (
    Stepped | Skipped | Validated | Evaluated | Sampled | Saved | Resumed | Replayed | RolledBack | Spiked | EndedEarly
    | Stopped | Degraded | Warned
)  # fmt: skip


def event_to_row(event: Event) -> dict[str, Any]:
    """Convert an event to a row of metrics.jsonl."""
    return {"kind": event.kind, **asdict(event)}


# From the union above, so that a new event can be read back without a second list.
KINDS: dict[str, Callable[..., Event]] = {kind.kind: kind for kind in get_args(Event)}


def event_from_row(row: Mapping[str, Any]) -> Event | None:
    """Convert a row of metrics.jsonl or samples.jsonl to an event; None for a kind or fields of another version."""
    kind = KINDS.get(row.get("kind", ""))
    values = {name: _value(value) for name, value in row.items() if name != "kind"}
    # TypeError: a row of another version may have other fields.
    try:
        return kind(**values) if kind else None
    except TypeError:
        return None


def _value(value: object) -> object:
    """Convert a value from JSON: a list to a tuple, null to NaN."""
    # Strict JSON has no NaN or infinity: `records.to_json` writes both as null.
    if value is None:
        return math.nan
    return tuple(value) if isinstance(value, list) else value

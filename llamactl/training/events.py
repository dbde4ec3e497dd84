"""What happens in a run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args


@dataclass(frozen=True)
class Moment:
    """When something happened: steps, tokens, FLOPs and seconds of training so far."""

    kind: ClassVar[str] = ""
    step: int
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Stepped(Moment):
    """An optimizer step; the loss is in nats a token, over all its micro-batches, before the update."""

    kind: ClassVar[str] = "step"
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory: int


@dataclass(frozen=True)
class Skipped(Moment):
    """A step whose loss or gradient was not finite: the weights stayed as they were."""

    kind: ClassVar[str] = "skipped"
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Validated(Moment):
    """The loss on held-out text, in nats a token and in bits a byte of text."""

    kind: ClassVar[str] = "validation"
    loss: float
    bits_per_byte: float


@dataclass(frozen=True)
class Sampled(Moment):
    """What the model makes of a prompt, with the same seed each time."""

    kind: ClassVar[str] = "sample"
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved(Moment):
    """A checkpoint is on disk."""

    kind: ClassVar[str] = "saved"
    path: str


@dataclass(frozen=True)
class Resumed(Moment):
    """The run goes on from a checkpoint; `damaged` names newer ones that could not be used.

    `differs` names what is not as it was when the checkpoint was made, so that the numbers to come may not be bit-exact.
    """

    kind: ClassVar[str] = "resumed"
    damaged: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replayed(Moment):
    """Steps that had been logged before the run was interrupted are done again; so many have another loss."""

    kind: ClassVar[str] = "replayed"
    steps: int
    different: int
    largest: float


@dataclass(frozen=True)
class RolledBack(Moment):
    """The run went back to this step, and leaves out the data that led to numbers that are none."""

    kind: ClassVar[str] = "rolled back"
    from_step: int


@dataclass(frozen=True)
class Spiked(Moment):
    """The loss is far above what it usually was."""

    kind: ClassVar[str] = "spike"
    loss: float
    usual: float


@dataclass(frozen=True)
class Stopped(Moment):
    """A signal asked the run to stop; what it learned is in a checkpoint."""

    kind: ClassVar[str] = "stopped"
    signal: int


@dataclass(frozen=True)
class Slowed(Moment):
    """The run goes on, slower than planned."""

    kind: ClassVar[str] = "slowed"
    why: str


Event = Stepped | Skipped | Validated | Sampled | Saved | Resumed | Replayed | RolledBack | Spiked | Stopped | Slowed


def row(event: Event) -> dict[str, Any]:
    """An event as a line of metrics.jsonl."""
    return {"kind": event.kind, **asdict(event)}


KINDS: dict[str, Callable[..., Event]] = {kind.kind: kind for kind in get_args(Event)}


def read(row: Mapping[str, Any]) -> Event | None:
    """The event of a line of metrics.jsonl or samples.jsonl; None for one that is none, or is of another version."""
    kind = KINDS.get(row.get("kind", ""))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items() if name != "kind"}
    try:
        return kind(**values) if kind else None
    except TypeError:
        return None

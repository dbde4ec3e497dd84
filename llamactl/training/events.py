"""What happens in a run, and how it is written down: one event a line, appended."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO

from llamactl.artifacts import RunDir


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
    """The run goes on from a checkpoint; `damaged` names newer ones that could not be used."""

    kind: ClassVar[str] = "resumed"
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slowed(Moment):
    """The run goes on, slower than planned."""

    kind: ClassVar[str] = "slowed"
    why: str


Event = Stepped | Skipped | Validated | Sampled | Saved | Resumed | Slowed


def row(event: Event) -> dict[str, Any]:
    """An event as a line of metrics.jsonl."""
    return {"kind": event.kind, **asdict(event)}


def record(events: Iterator[Event], run: RunDir) -> Iterator[Event]:
    """Write each event down before passing it on: samples to samples.jsonl, all else to metrics.jsonl."""
    with _appending(run.metrics_path) as metrics, _appending(run.samples_path) as samples:
        for event in events:
            file = samples if isinstance(event, Sampled) else metrics
            file.write(json.dumps(row(event)) + "\n")
            file.flush()
            yield event


def _appending(path: Path) -> TextIO:
    """Open a log for appending; the half line that a killed writer left is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        os.truncate(path, file.read().rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")

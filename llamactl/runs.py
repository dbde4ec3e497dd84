"""What became of a run, from its folder alone."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from llamactl import durable
from llamactl.artifacts import RunDir
from llamactl.errors import BadUsage, UserError

Condition = Literal["running", "done", "stopped", "damaged"]


@dataclass(frozen=True)
class Summary:
    """A run at a glance; losses are in nats a token, `None` where there is none yet."""

    name: str
    condition: Condition
    preset: str
    dataset: str
    step: int
    steps: int
    tokens: int
    seconds: float
    loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    checkpoints: tuple[int, ...]
    bytes: int
    started: str


def summarise(run: RunDir) -> Summary:
    """Read a run's config and its log; one that can't be read is called damaged."""
    size = _bytes(run.path)
    started = f"{datetime.fromtimestamp(run.config_path.stat().st_mtime):%Y-%m-%d %H:%M}"
    try:
        config, rows = run.config(), run.rows()
    except UserError:
        return Summary(run.path.name, "damaged", "", "", 0, 0, 0, 0.0, None, None, None, tuple(run.steps()), size, started)
    train = config.train
    steps = -(-train.tokens // train.tokens_per_step) if train.tokens_per_step else 0
    last = _last(rows, "step")
    validation = _last(rows, "validation")
    done = bool(run.steps()) and run.steps()[-1] == steps
    return Summary(
        name=run.path.name,
        condition="running" if durable.in_use(run.lock_path) else "done" if done else "stopped",
        preset=config.preset,
        dataset=config.data.name,
        step=last.get("step", 0),
        steps=steps,
        tokens=last.get("tokens", 0),
        seconds=last.get("seconds", 0.0),
        loss=last.get("loss"),
        validation_loss=validation.get("loss"),
        bits_per_byte=validation.get("bits_per_byte"),
        checkpoints=tuple(run.steps()),
        bytes=size,
        started=started,
    )


def remove(run: RunDir, sure: bool) -> Summary:
    """Remove a run, and say what it was; raises BadUsage when nobody is `sure`, InUse while it is being trained."""
    summary = summarise(run.existing())
    if not sure:
        why = f"It would free {summary.bytes / 1e6:,.1f} MB and lose {summary.step:,} steps for good."
        raise BadUsage(f"{run.path} is still there.", why, f"If that is meant: llamactl runs remove {summary.name} --yes")
    with durable.locked(run.lock_path):
        durable.remove(run.path)
    return summary


def _bytes(folder: Path) -> int:
    """The size of all files, some of which may go while they are counted."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def _last(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The row of a kind with the highest step."""
    return max((row for row in rows if row["kind"] == kind), key=lambda row: int(row["step"]), default={})

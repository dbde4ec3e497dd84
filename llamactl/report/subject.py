"""A run as a report needs it, read once from its folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from llamactl.artifacts import RunDir
from llamactl.config import Config
from llamactl.errors import BadData
from llamactl.plots import Curve
from llamactl.runs import Summary, summarise

PLACES = ("step", "tokens", "seconds", "flops")  # what a point can be drawn against

Columns = dict[str, list[float]]


@dataclass(frozen=True)
class Subject:
    """A run: its settings, its log by kind as columns, and the plan it began with, empty where there is none.

    Losses are in nats a token, speed is the median in tokens a second, memory the peak in bytes.
    """

    summary: Summary
    parameters: int
    config: Config
    environment: dict[str, Any]
    samples: dict[str, dict[int, str]]
    plan: dict[str, Any]
    train: Columns
    validation: Columns
    resumed: Columns
    spikes: Columns
    speed: float
    mfu: float
    memory: float


def read_subject(run: RunDir, parameters: int) -> Subject:
    """Read a run of so many parameters; raises BadData that names the file when there is nothing, or nonsense, in it."""
    config, rows = run.config(), sorted(run.rows(), key=lambda row: int(row["step"]))
    try:
        steps = _columns(rows, "step", "loss", "tokens_per_second", "mfu", "memory")
        validation = _columns(rows, "validation", "loss", "bits_per_byte")
        resumed, spikes = _columns(rows, "resumed"), _columns(rows, "spike", "loss")
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(f"{run.metrics_path} is damaged.", f"A row lacks a number: {error}.") from error
    if not steps["loss"]:
        fix = "Watch it, or start one: llamactl train --tokens 256000"
        raise BadData(f"The run {run.path.name} has no losses yet.", "", fix)
    steps["smooth"] = _smooth(steps["loss"])
    speed, mfu, memory = (steps.pop(name) for name in ("tokens_per_second", "mfu", "memory"))
    return Subject(
        summarise(run), parameters, config, run.environment(), run.samples(), run.plan() if run.plan_path.exists() else {},
        steps, validation, resumed, spikes, median(speed), median(mfu), max(memory),
    )  # fmt: skip


def extremes(values: Sequence[float], most: int) -> list[int]:
    """Which of the values to keep so that about `most` are left: the lowest and the highest of each stretch, and both ends."""
    if len(values) <= most:
        return list(range(len(values)))
    stretch = math.ceil(2 * len(values) / most)
    kept = {0, len(values) - 1}
    for start in range(0, len(values), stretch):
        places = range(start, min(start + stretch, len(values)))
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return sorted(kept)


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, two or more, as evenly spaced as they can be, with both ends."""
    last, kept = len(values) - 1, min(most, len(values))
    return [values[round(number * last / max(1, kept - 1))] for number in range(kept)]


def _columns(rows: Sequence[dict[str, Any]], kind: str, *measured: str) -> Columns:
    """The numbers of all rows of a kind; a row with one that is not finite has no place in a picture."""
    names = (*PLACES, *measured)
    points = [[float(row[name]) for name in names] for row in rows if row["kind"] == kind]
    drawn = [point for point in points if all(map(math.isfinite, point))]
    return {name: [point[place] for point in drawn] for place, name in enumerate(names)}


def _smooth(losses: list[float]) -> list[float]:
    return Curve(name="", x=(), loss=tuple(losses), validation_x=(), validation=(), resumed=()).smooth

"""Read the data of a run that a report needs, once, from the run's folder."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from llamactl.config.schema import Config
from llamactl.errors import DataError
from llamactl.report.plots import Curve
from llamactl.runs import metrics_log
from llamactl.runs.metrics_log import read_columns
from llamactl.runs.run_dir import RunDir
from llamactl.runs.scores import SuiteScores, read_scores
from llamactl.runs.summary import Summary, summarize_run

PLACES = ("tokens", "seconds", "flops")  # the x axes besides the step
MEASURED = {
    "step": (*PLACES, "loss", "tokens_per_second", "mfu", "memory"),
    "validation": (*PLACES, "loss", "bits_per_byte"),
    "resumed": PLACES,
    "spike": (*PLACES, "loss"),
}

Columns = dict[str, list[float]]


@dataclass(frozen=True)
class RunData:
    """The data of a run: its settings, the columns of its log by kind, and its plan, which is empty where there is none.

    Losses are in nats per token, `speed` is the median in tokens per second, `memory` the peak in bytes. `scores` are
    those of checkpoints on the evaluation suite, by step.
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
    scores: tuple[SuiteScores, ...]


def read_run_data(run: RunDir, parameters: int) -> RunData:
    """Read the data of a run with `parameters` parameters; raises DataError, naming the file, when it is missing or invalid."""
    config, found = run.config(), read_columns(run.metrics_path, MEASURED, run.path)
    steps, validation, resumed, spikes = (_points(found[kind]) for kind in MEASURED)
    if not steps["loss"]:
        fix = "Watch it, or start one: llamactl train"
        raise DataError(f"The run {run.path.name} has no losses yet.", "", fix)
    steps["smooth"] = _smooth(steps["loss"])
    speed, mfu, memory = (steps.pop(name) for name in ("tokens_per_second", "mfu", "memory"))
    plan = run.plan() if os.path.lexists(run.plan_path) else {}
    return RunData(
        summarize_run(run), parameters, config, run.environment(), run.samples(), plan,
        steps, validation, resumed, spikes, median(speed), median(mfu), max(memory), read_scores(run),
    )  # fmt: skip


def keep_extremes(values: Sequence[float], most: int) -> list[int]:
    """Return the indices of about `most` values: the lowest and the highest of each interval, and both ends."""
    if len(values) <= most:
        return list(range(len(values)))
    stretch = math.ceil(2 * len(values) / most)
    kept = {0, len(values) - 1}
    for start in range(0, len(values), stretch):
        places = range(start, min(start + stretch, len(values)))
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return sorted(kept)


def spread_evenly(values: Sequence[int], most: int) -> list[int]:
    """Select at most `most` (at least two) of the values, evenly spaced and including both ends."""
    last, kept = len(values) - 1, min(most, len(values))
    return [values[round(number * last / max(1, kept - 1))] for number in range(kept)]


def _points(columns: metrics_log.Columns) -> Columns:
    """Convert the columns to lists, without rows that have a value that is not finite."""
    kept = np.logical_and.reduce([np.isfinite(column) for column in columns.values()])
    return {name: column[kept].tolist() for name, column in columns.items()}


def _smooth(losses: list[float]) -> list[float]:
    return Curve(name="", x=(), loss=tuple(losses), validation_x=(), validation=(), resumed=()).smooth

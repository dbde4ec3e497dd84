"""Read the data of a run that a report needs, once, from the run's folder."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamactl.config.schema import Config
from llamactl.errors import DataError
from llamactl.report.thinning import drawable_rows, moving_average
from llamactl.runs.metrics_log import Columns, read_columns
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
    steps, validation, resumed, spikes = (drawable_rows(found[kind]) for kind in MEASURED)
    if not len(steps["loss"]):
        fix = "Watch it, or start one: llamactl train"
        raise DataError(f"The run {run.path.name} has no losses yet.", "", fix)
    steps["smooth"] = moving_average(steps["loss"])
    speed, mfu = (float(np.median(steps.pop(name))) for name in ("tokens_per_second", "mfu"))
    memory = float(steps.pop("memory").max())
    plan = run.plan() if os.path.lexists(run.plan_path) else {}
    return RunData(
        summarize_run(run), parameters, config, run.environment(), run.samples(), plan,
        steps, validation, resumed, spikes, speed, mfu, memory, read_scores(run),
    )  # fmt: skip

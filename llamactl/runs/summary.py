"""Summarise and compare runs from their folders alone."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llamactl.config.schema import Config, setting_names
from llamactl.corpus.dataset import DatasetDir
from llamactl.errors import DataError, UsageError, UserError
from llamactl.runs.metrics_log import last_rows, read_columns
from llamactl.runs.run_dir import RunDir, run_of
from llamactl.storage import atomic, locks
from llamactl.storage.records import folder_bytes, look_up

Condition = Literal["running", "done", "stopped", "damaged"]


@dataclass(frozen=True)
class Summary:
    """The main facts of a run; losses are in nats per token, `None` where there is none yet."""

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
    eval_tokens: int  # that the validation measured; 0: unknown
    loss_error: float | None  # standard error of the validation
    checkpoints: tuple[int, ...]
    bytes: int
    started: str
    warning: str = ""  # why its final loss is suspect, in words
    set_aside: tuple[str, ...] = ()  # folders of damaged checkpoints
    ended_early: bool = False  # done, by its patience, before the last of its steps

    def describe_condition(self) -> str:
        """Return the condition for people, for whom a run that is done after 8 of 123 steps ended early."""
        return "ended early" if self.ended_early else self.condition


def summarize_run(run: RunDir) -> Summary:
    """Summarise a run from its config and log; it is "damaged" if they can't be read. Raises DataError if it was removed."""
    size, started = folder_bytes(run.path), _started(run)
    try:
        config, checkpoints = run.config(), tuple(run.steps())
        rows = last_rows(run.metrics_path, ("step", "validation", "evaluation", "warning", "ended early"), run.path)
    except UserError:
        _started(run)
        return Summary(run.path.name, "damaged", "", "", 0, 0, 0, 0.0, None, None, None, 0, None, (), size, started)
    train = config.train
    steps = -(-train.tokens // train.tokens_per_step) if train.tokens_per_step else 0
    last, validation = rows.get("step", {}), newest_validation(rows)
    end = rows.get("ended early", {}).get("step", steps)
    # A run that was resumed after its early end has later steps.
    done = bool(checkpoints) and (checkpoints[-1] == steps or checkpoints[-1] == end >= last.get("step", 0))
    condition: Condition = "running" if locks.is_locked(run.lock_path) else "done" if done else "stopped"
    return Summary(
        name=run.path.name,
        condition=condition,
        preset=config.preset,
        dataset=config.data.name,
        step=last.get("step", 0),
        steps=steps,
        tokens=last.get("tokens", 0),
        seconds=last.get("seconds") or 0.0,
        loss=last.get("loss"),
        validation_loss=validation.get("loss"),
        bits_per_byte=validation.get("bits_per_byte"),
        eval_tokens=validation.get("eval_tokens", 0),
        loss_error=validation.get("loss_error"),
        checkpoints=checkpoints,
        bytes=size,
        started=started,
        warning=str(warning.get("why", "")) if (warning := rows.get("warning", {})).get("step") == last.get("step") else "",
        set_aside=tuple(path.name for path in run.set_aside()),
        ended_early=condition == "done" and checkpoints[-1] < steps,
    )


def newest_validation(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the newest row of a validation among those of `last_rows`.

    At the end of a run that is the evaluation on the whole split of what its name stands for: the last checkpoint, or the best.
    """
    return next((row for kind, row in rows.items() if kind in ("validation", "evaluation")), {})


def read_evaluation(checkpoint: Path, step: int) -> dict[str, Any]:
    """Return the row of a checkpoint's evaluation on the whole held-out split; empty without one, or a readable log."""
    if (run := run_of(checkpoint)) is None:
        return {}
    with suppress(UserError):
        row = last_rows(run.metrics_path, ("evaluation",), run.path).get("evaluation", {})
        if row.get("step") == step and row.get("loss") is not None:
            return row
    return {}


def summarize_all() -> list[Summary]:
    """Summarise all runs, newest first, except those that are removed meanwhile."""
    found = []
    for run in RunDir.all():
        with suppress(DataError):
            found.append(summarize_run(run))
    return found


def _started(run: RunDir) -> str:
    """Return the date and time when a run was started or resumed; raises DataError if it was removed."""
    try:
        written = run.config_path.lstat().st_mtime
    except OSError as error:
        raise DataError(f"There is no run {run.path.name!r} any more.", f"{error.strerror}.") from error
    try:
        return f"{datetime.fromtimestamp(written):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a time outside the range of datetime
        return ""


def remove_run(run: RunDir, sure: bool) -> Summary:
    """Remove a run and return its summary; raises UsageError unless `sure`, InUse while it is being trained."""
    summary = summarize_run(run.check_exists())
    if not sure:
        why = f"It would free {summary.bytes / 1e6:,.1f} MB and lose {summary.step:,} steps for good."
        raise UsageError(f"{run.path} is still there.", why, f"If that is meant: llamactl runs remove {summary.name} --yes")
    with locks.hold_removal_lock(run.path, run.lock_path):
        atomic.remove_folder(run.path)
    return summary


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs: each row has a value for each run, in the order of `names`.

    `settings` and `environment` hold only rows that differ; `results` holds all, with `None` for a missing value: losses in
    nats per token, times in seconds, memory in bytes. `cautions` explain which results are not comparable.
    """

    names: tuple[str, ...]
    settings: dict[str, tuple[Any, ...]]
    environment: dict[str, tuple[Any, ...]]
    results: dict[str, tuple[float | None, ...]]
    cautions: tuple[str, ...]


def compare_runs(runs: Sequence[RunDir]) -> Comparison:
    """Compare the settings and results of runs; raises UsageError for fewer than two, DataError if one can't be read."""
    if len(runs) < 2:
        raise UsageError("A difference is between two runs or more.", "", "Name them: llamactl runs diff A B")
    configs, environments = [run.config() for run in runs], [run.environment() for run in runs]
    flat = [{"preset": config.preset, **{name: _setting(config, name) for name in setting_names()}} for config in configs]
    return Comparison(
        names=tuple(run.path.name for run in runs),
        settings=_differing(flat),
        environment=_differing([_surroundings(made_with) for made_with in environments]),
        results=_beside([_results(run) for run in runs]),
        cautions=tuple(_cautions(configs, [_digest(made_with) for made_with in environments])),
    )


def describe_disclosure(run: RunDir) -> str:
    """List what a run's folder reveals about its author to anyone who receives it."""
    made_with = run.environment()
    told = ["the command line, without what looks like a secret"] if made_with.get("command") else []
    system, data = made_with.get("system"), look_up(made_with, "dataset", "name")
    told += [f"the system {system}"] if system else []
    told += [f"the name of the dataset, {data}"] if data else []
    told += ["prompts and what the model made of them"] if os.path.lexists(run.samples_path) else []
    return "; ".join([*told, "weights, which may repeat text they learned from"])


def _setting(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _digest(made_with: Mapping[str, Any]) -> str:
    return str(look_up(made_with, "dataset", "digest") or "")


def _surroundings(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's results and speed depend on apart from its config (which has the precision)."""
    known = {name: made_with.get(name) for name in ("device", "instructions", "threads", "llamactl")}
    return {**known, "torch": look_up(made_with, "packages", "torch"), "dataset": _digest(made_with)}


def _beside(columns: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(column[name] for column in columns) for name in columns[0]}


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: values for name, values in _beside(columns).items() if any(value != values[0] for value in values)}


JUDGED = {
    "step": ("tokens", "seconds", "tokens_per_second", "memory"),
    "validation": ("loss",),
}


def _results(run: RunDir) -> dict[str, float | None]:
    """Read the metrics by which runs are compared."""
    found = read_columns(run.metrics_path, JUDGED, run.path)
    steps = found["step"]
    validation = newest_validation(last_rows(run.metrics_path, ("validation", "evaluation"), run.path))

    def over(column: np.ndarray, summary: Callable[[np.ndarray], Any]) -> float | None:
        known = column[np.isfinite(column)]
        return float(summary(known)) if len(known) else None

    def last(column: np.ndarray) -> float | None:
        return over(column[-1:], np.max)

    return {
        "step": int(last(steps["step"]) or 0),
        "tokens": int(last(steps["tokens"]) or 0),
        "validation": validation.get("loss"),
        "bits_per_byte": validation.get("bits_per_byte"),
        "best_validation": over(found["validation"]["loss"], np.min),
        "seconds": last(steps["seconds"]) or 0.0,
        "tokens_per_second": over(steps["tokens_per_second"], np.median),
        "memory": over(steps["memory"], np.max),
    }


def _cautions(configs: Sequence[Config], digests: Sequence[str]) -> list[str]:
    """List which results are not comparable, and why."""
    said = []
    if len(set(digests)) > 1:
        made = [_tokenizer(config.data.name, digest) for config, digest in zip(configs, digests, strict=True)]
        if "" in made or len(set(made)) > 1:
            what = "are not known to be the same" if "" in made else "differ"
            said.append(f"Their tokenizers {what}: only bits per byte compares, as far as the held-out text is alike.")
        else:
            said.append("Their datasets differ: losses compare as far as the held-out text is alike.")
    if len({config.train.eval_tokens for config in configs}) > 1:
        said.append("They were validated on different amounts of held-out text, so a small difference may be noise.")
    return said


def _tokenizer(name: str, digest: str) -> str:
    """Return the sha256 of a dataset's tokenizer; empty when the dataset is gone or has changed."""
    with suppress(UserError):
        info = DatasetDir.from_name(name).info()
        return info.tokenizer if info.digest == digest else ""
    return ""

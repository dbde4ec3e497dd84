"""What became of a run, from its folder alone."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from llamactl import durable
from llamactl.artifacts import DatasetDir, RunDir
from llamactl.config import Config, knobs
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


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other: each row has a value for each run, in the order of `names`.

    `settings` and `environment` have what differs alone; `results` have all, `None` where there is none: losses are in nats
    a token, times in seconds, memory in bytes. `cautions` say what does not compare.
    """

    names: tuple[str, ...]
    settings: dict[str, tuple[Any, ...]]
    environment: dict[str, tuple[Any, ...]]
    results: dict[str, tuple[float | None, ...]]
    cautions: tuple[str, ...]


def compare(runs: Sequence[RunDir]) -> Comparison:
    """What differs between runs, and what came of it; raises BadUsage for one alone, BadData where one can't be read."""
    if len(runs) < 2:
        raise BadUsage("A difference is between two runs or more.", "", "Name them: llamactl runs diff A B")
    configs, environments = [run.config() for run in runs], [run.environment() for run in runs]
    flat = [{"preset": config.preset, **{name: _setting(config, name) for name in knobs()}} for config in configs]
    return Comparison(
        names=tuple(run.path.name for run in runs),
        settings=_differing(flat),
        environment=_differing([_surroundings(made_with) for made_with in environments]),
        results=_beside([_results(run.rows()) for run in runs]),
        cautions=tuple(_cautions(configs, [_digest(made_with) for made_with in environments])),
    )


def _setting(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _digest(made_with: Mapping[str, Any]) -> str:
    return str(made_with.get("dataset", {}).get("digest", ""))


def _surroundings(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's numbers and its speed depend on beside its config, which has the precision."""
    known = {name: made_with.get(name) for name in ("device", "instructions", "threads", "llamactl")}
    return {**known, "torch": made_with.get("packages", {}).get("torch"), "dataset": _digest(made_with)}


def _beside(columns: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(column[name] for column in columns) for name in columns[0]}


def _differing(columns: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: values for name, values in _beside(columns).items() if any(value != values[0] for value in values)}


def _results(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The figures that runs are judged by."""
    last, validation = _last(rows, "step"), _last(rows, "validation")

    def over(kind: str, field: str, summary: Callable[[list[float]], float]) -> float | None:
        values = [row[field] for row in rows if row["kind"] == kind and field in row]
        return summary(values) if values else None

    return {
        "step": last.get("step", 0),
        "tokens": last.get("tokens", 0),
        "validation": validation.get("loss"),
        "bits_per_byte": validation.get("bits_per_byte"),
        "best_validation": over("validation", "loss", min),
        "seconds": last.get("seconds", 0.0),
        "tokens_per_second": over("step", "tokens_per_second", statistics.median),
        "memory": over("step", "memory", max),
    }


def _cautions(configs: Sequence[Config], digests: Sequence[str]) -> list[str]:
    """What of the results does not compare, and why."""
    said = []
    if len(set(digests)) > 1:
        made = [_tokenizer(config.data.name, digest) for config, digest in zip(configs, digests, strict=True)]
        if "" in made or len(set(made)) > 1:
            what = "are not known to be the same" if "" in made else "differ"
            said.append(f"Their tokenizers {what}: only bits per byte compares, as far as the held-out text is alike.")
        else:
            said.append("Their datasets differ: losses compare as far as the held-out text is alike.")
    if len({config.train.eval_tokens for config in configs}) > 1:
        said.append("They were validated on more and on less of the held-out text: a small difference may come from that.")
    return said


def _tokenizer(name: str, digest: str) -> str:
    """The sha256 of a dataset's tokenizer; empty when the dataset is not there any more as it was."""
    with suppress(UserError):
        info = DatasetDir.named(name).info()
        return info.tokenizer if info.digest == digest else ""
    return ""


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

"""Compute the numbers of a report: the results of a run, the settings that differ between runs, and the plan's accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamactl.report.run_data import RunData
from llamactl.runs.run_dir import plan_number
from llamactl.units import show_bytes, show_count, show_time


@dataclass(frozen=True)
class Result:
    """A result as text; where results can be ranked, the lowest score is the best."""

    text: str
    score: float = math.inf


def headline_results(subject: RunData) -> dict[str, Result]:
    """Return the headline results of a run by name, with their units."""
    summary, config = subject.summary, subject.config
    loss, bits = summary.validation_loss, summary.bits_per_byte
    return {
        "validation, per token": Result(f"{loss:.3f} nats", loss) if loss is not None else Result("–"),
        "validation, per byte": Result(f"{bits:.3f} bits", bits) if bits is not None else Result("–"),
        "parameters": Result(show_count(subject.parameters)),
        "tokens": Result(f"{show_count(summary.tokens)} of {show_count(config.train.tokens)}"),
        "training time": Result(show_time(summary.seconds)),
        "speed, median": Result(f"{show_count(subject.speed)} tokens/s"),
        "MFU, median": Result(
            f"{subject.mfu:.0%}" if subject.mfu <= 1 else "unknown: the peak rate was measured on a busy machine"
        ),
        "peak memory": Result(show_bytes(subject.memory)),
        "steps": Result(f"{summary.step:,} of {summary.steps:,}"),
        "condition": Result(summary.describe_condition()),
    }


def differing_settings(subjects: Sequence[RunData]) -> dict[str, list[str]]:
    """Return the settings that differ between runs, each with its value in every run."""
    trees = [_flat(subject.config.model_dump(mode="json")) for subject in subjects]
    return {
        name: [_value(tree[name]) for tree in trees] for name in trees[0] if any(tree[name] != trees[0][name] for tree in trees)
    }


@dataclass(frozen=True)
class PlanComparison:
    """A planned and a measured quantity; `ratio` is measured / planned."""

    name: str
    planned: str
    came: str
    ratio: float


def compare_with_plan(subject: RunData) -> list[PlanComparison]:
    """Compare the plan with the results, for each quantity that has both."""
    plan, summary = subject.plan, subject.summary
    memory = _number(plan, "memory") or _at_once(plan.get("memory"))
    loss = _number(plan, "loss", "loss.loss")
    low, high = _number(plan, "loss_low", "loss.low"), _number(plan, "loss_high", "loss.high")
    span = f" ({low:.2f} – {high:.2f})" if low and high else ""
    made = (
        ("time of all steps", _number(plan, "seconds", "duration.steps"), summary.seconds, show_time, ""),
        ("memory", memory, subject.memory, show_bytes, ""),
        ("steps", _number(plan, "steps"), summary.step, lambda value: f"{value:,.0f}", ""),
        ("tokens", _number(plan, "tokens"), summary.tokens, show_count, ""),
        ("validation, nats per token", loss, summary.validation_loss, lambda value: f"{value:.3f}", span),
    )
    return [
        PlanComparison(name, show(planned) + more, show(came), came / planned)
        for name, planned, came, show, more in made
        if planned and came is not None
    ]


def _number(plan: object, *names: str) -> float:
    """Return the value of the first key, such as `loss` or `loss.low`, that is a finite number above 0; otherwise 0."""
    return next(filter(None, (plan_number(plan, *name.split(".")) for name in names)), 0.0)


def _at_once(parts: object) -> float:
    """Return the peak bytes of memory given its parts.

    The memory of a micro-batch is freed before the optimizer's update needs its own, so only the larger of the two counts.
    """
    if not isinstance(parts, dict):
        return 0.0
    passing = _number(parts, "activations") + _number(parts, "logits") + _number(parts, "gathered")
    return sum(_number(parts, name) for name in parts) - min(passing, _number(parts, "update"))


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    sections = {name: value for name, value in tree.items() if isinstance(value, dict)}
    plain = {name: value for name, value in tree.items() if name not in sections}
    return plain | {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

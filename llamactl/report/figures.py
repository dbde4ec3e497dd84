"""What a report says in numbers: the results of a run, what differs among runs, and the plan against what happened."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamactl.quantities import show_bytes, show_count, show_time
from llamactl.report.subject import Subject


@dataclass(frozen=True)
class Figure:
    """A result in words; where results can be ranked, the lowest score is the best."""

    text: str
    score: float = math.inf


def results(subject: Subject) -> dict[str, Figure]:
    """The headline figures of a run, with their units."""
    summary, config = subject.summary, subject.config
    loss, bits = summary.validation_loss, summary.bits_per_byte
    return {
        "validation, per token": Figure(f"{loss:.3f} nats", loss) if loss is not None else Figure("–"),
        "validation, per byte": Figure(f"{bits:.3f} bits", bits) if bits is not None else Figure("–"),
        "parameters": Figure(show_count(subject.parameters)),
        "tokens": Figure(f"{show_count(summary.tokens)} of {show_count(config.train.tokens)}"),
        "training time": Figure(show_time(summary.seconds)),
        "speed, median": Figure(f"{show_count(subject.speed)} tokens/s"),
        "MFU, median": Figure(f"{subject.mfu:.0%}"),
        "peak memory": Figure(show_bytes(subject.memory)),
        "steps": Figure(f"{summary.step:,} of {summary.steps:,}"),
        "condition": Figure(summary.condition),
    }


def differences(subjects: Sequence[Subject]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, each with its value in every run."""
    trees = [_flat(subject.config.model_dump(mode="json")) for subject in subjects]
    return {
        name: [_value(tree[name]) for tree in trees] for name in trees[0] if any(tree[name] != trees[0][name] for tree in trees)
    }


@dataclass(frozen=True)
class Promise:
    """A figure as it was planned and as it came; `ratio` is what came, as a multiple of what was planned."""

    name: str
    planned: str
    came: str
    ratio: float


def promises(subject: Subject) -> list[Promise]:
    """The plan against what happened, as far as there is a plan and a result."""
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
        Promise(name, show(planned) + more, show(came), came / planned)
        for name, planned, came, show, more in made
        if planned and came is not None
    ]


def _number(plan: object, *names: str) -> float:
    """The first of these, such as `loss` or `loss.low`, that is a number above zero; or zero."""
    for name in names:
        value = plan
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return float(value)
    return 0.0


def _at_once(parts: object) -> float:
    """Bytes of the parts of memory together: what a micro-batch needs is gone when the optimizer's update needs room."""
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

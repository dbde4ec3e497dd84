"""A run that did not learn is told so in words. `training/learning.py`, `judge_losses`, is the one place."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.metrics.monitor import record_events
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import summarize_run
from llamactl.training.events import Event, Stepped, Stopped, Validated, Warned
from llamactl.training.loss_warnings import judge_losses
from tests.runs.test_summary import make

UNIFORM = math.log(4096)  # 8.32
STEPS = range(1, 201)


def falling(step: int) -> float:
    """What a run that learns looks like, with the noise of small batches."""
    return 3.5 + 4.9 * math.exp(-step / 30) + 0.15 * math.sin(17 * step)


CURVES: dict[str, tuple[Callable[[int], float], str]] = {
    "learns": (falling, ""),
    "learns a little": (lambda step: UNIFORM - 0.004 * step, ""),
    "never below": (lambda step: UNIFORM + 0.1 * math.sin(step), "never fell below ln(4,096) = 8.32"),
    "far above": (lambda step: 30.0, "never fell below"),
    "worse and worse": (lambda step: UNIFORM + step, "never fell below"),
    "back": (lambda step: falling(step) if step < 120 else UNIFORM + 0.02 * math.cos(step), "rose back to 8.3"),
    "half back": (lambda step: falling(step) if step < 120 else 5.5, "well above its best, 3."),
    "zero": (lambda step: 0.0, "exactly 0"),
    "zero at last": (lambda step: falling(step) if step < 150 else 0.0, "exactly 0"),
    "not a number now and then": (lambda step: math.nan if step % 9 == 0 else falling(step), ""),
}


@pytest.mark.parametrize("name", CURVES)
def test_how_a_run_ended(name: str) -> None:
    curve, says = CURVES[name]
    why = judge_losses({step: curve(step) for step in STEPS}, {}, 4096)
    assert (says in why) if says else why == ""


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 40])
def test_short_runs(steps: int) -> None:
    assert "never fell below" in judge_losses(dict.fromkeys(range(1, steps + 1), UNIFORM), {}, 4096)
    assert judge_losses({step: 8.0 - step / 10 for step in range(1, steps + 1)}, {}, 4096) == ""
    assert judge_losses({}, {}, 4096) == ""


def test_overfitting_is_named_with_the_best_checkpoint() -> None:
    why = judge_losses({step: falling(step) for step in STEPS}, {50: 5.0, 100: 4.6, 150: 4.9, 200: 5.4}, 4096)
    assert "4.60 at step 100" in why
    assert "RUN@best" in why
    assert judge_losses({step: falling(step) for step in STEPS}, {50: 5.0, 100: 4.6, 150: 4.62, 200: 4.7}, 4096) == ""


def events(losses: list[float], stopped: bool = False) -> list[Event]:
    found: list[Event] = [Stepped(n, n, 1.0, 1.0, loss, 0.1, 1.0, 1.0, 0.1, 1) for n, loss in enumerate(losses, 1)]
    found.append(Validated(len(losses), len(losses), 1.0, 1.0, losses[-1], 1.0))
    return [*found, Stopped(len(losses), 1, 1.0, 1.0, 15)] if stopped else found


def test_it_is_an_event_a_row_and_a_line_of_runs_show(home: Path) -> None:
    run = make("a", 0)
    passed = list(record_events(iter(events([9.0] * 10)), run, vocab_size=4096))
    assert isinstance(passed[-1], Warned)
    (row,) = (json.loads(line) for line in run.metrics_path.read_text().splitlines() if '"warning"' in line)
    assert (row["step"], row["why"]) == (10, passed[-1].why)
    assert summarize_run(run).warning == passed[-1].why
    list(record_events(iter(events([9.0] * 10 + [5.0] * 20)[10:]), run, vocab_size=4096))
    assert summarize_run(run).warning == "", "trained longer, it has learned"


def test_a_run_that_is_stopped_is_not_judged_yet(home: Path) -> None:
    run = RunDir.from_name("a")
    assert not [e for e in record_events(iter(events([9.0] * 10, stopped=True)), run, vocab_size=4096) if isinstance(e, Warned)]

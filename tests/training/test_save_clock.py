"""Saves follow time too. `training/save_clock.py` is the one place that decides it."""

from collections.abc import Callable

import pytest

from llamactl.checkpoint import format as checkpoint_format
from llamactl.config.schema import build_config
from llamactl.corpus.dataset import Dataset
from llamactl.errors import UsageError
from llamactl.planning.step_time import max_checkpoints_on_disk
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Saved, Stepped
from llamactl.training.save_clock import SaveClock
from llamactl.training.trainer import train_run
from tests.training.conftest import Configured
from tests.training.test_trainer import RATE, assert_equal, weights


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass, in seconds, without waiting."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def add(seconds: float) -> None:
        now[0] += seconds

    return add


@pytest.mark.parametrize(
    ("minutes", "step", "due_at"),
    [
        (10, 60, 9),  # after the ninth minute: the tenth step would end ten minutes after the save
        (10, 240, 2),
        (10, 3000, 1),  # a step longer than that: after each
        (0.5, 10, 2),
        (0, 3600, None),
    ],
)
def test_a_save_is_due_before_too_much_is_unsaved(
    minutes: float, step: float, due_at: int | None, wait: Callable[[float], None]
) -> None:
    clock = SaveClock(minutes)
    due = []
    for number in range(1, 25):
        wait(step)
        if clock.is_due():
            due.append(number)
            clock.restart()
    assert due == ([] if due_at is None else list(range(due_at, 25, due_at)))


def test_when_a_run_saves_changes_no_bit_of_it(configured: Configured, dataset: Dataset, wait: Callable[[float], None]) -> None:
    """Twenty steps of four minutes each, with ten minutes by default: saved after each second one, and the same weights."""
    saved: dict[str, list[int]] = {}
    for name, over in (("often", {}), ("once", {"save_minutes": 0})):
        config, world = configured(train={"save_every": 1000, "eval_every": 1000, "keep_last": 99, "prompts": [], **over})
        events = []
        for event in train_run(config, dataset, RunDir.from_name(name), world, RATE):
            events.append(event)
            wait(240 if isinstance(event, Stepped) else 0)
        saved[name] = [event.step for event in events if isinstance(event, Saved)]
    assert saved == {"often": list(range(2, 21, 2)), "once": [20]}
    assert_equal(weights(RunDir.from_name("often")), weights(RunDir.from_name("once")))
    assert checkpoint_format.read_verified_state(RunDir.from_name("often").checkpoint(4)).step == 4


def test_the_plan_knows_of_them(configured: Configured) -> None:
    for over, most in (({"save_minutes": 0}, 3), ({}, 4), ({"keep_last": 9}, 11), ({"keep_last": 9, "keep_every": 50}, 13)):
        config, _ = configured(train={"save_every": 50, **over})
        assert max_checkpoints_on_disk(config.train, 100) == most, over


@pytest.mark.parametrize("value", ["-1", "inf", "nan", "1e9"])
def test_what_makes_no_sense_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"train\.save_minutes"):
        build_config([{"train": {"save_minutes": float(value)}}])

"""Which checkpoints stay: only sound ones count, whatever else is there. `training/retention.py` is the one place."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint.retention import Retention
from llamactl.corpus.dataset import Dataset
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Event, Resumed, Stepped, Stopped
from llamactl.training.signals import StopRequests
from llamactl.training.trainer import train_run
from tests.training.conftest import Configured, Made
from tests.training.test_survival import sound
from tests.training.test_trainer import RATE, assert_equal, weights


def flip(path: Path) -> None:
    """One bit of the weights."""
    content = bytearray((path / checkpoint_format.WEIGHTS).read_bytes())
    content[-9] ^= 1
    (path / checkpoint_format.WEIGHTS).write_bytes(content)


def cut(path: Path) -> None:
    content = (path / checkpoint_format.OPTIMIZER).read_bytes()
    (path / checkpoint_format.OPTIMIZER).write_bytes(content[: len(content) // 2])


def lose_state(path: Path) -> None:
    (path / checkpoint_format.STATE).unlink()


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def link_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


def of_another_step(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.parent / "step-00000030", path)


DAMAGES = (flip, cut, lose_state, empty, file_instead, link_instead, of_another_step)


def run_until(made: Made, name: str, stop_at: int, before: Callable[[int], None] = lambda step: None) -> list[Event]:
    """Train, and ask to stop after a step."""
    config, world, dataset = made
    wishes, events = StopRequests(), []
    for event in train_run(config, dataset, RunDir.from_name(name), world, RATE, wishes):
        events.append(event)
        if isinstance(event, Stepped):
            before(event.step)
            wishes.stop = 15 if event.step == stop_at else wishes.stop
    return events


def made_with(configured: Configured, dataset: Dataset, **train: object) -> Made:
    config, world = configured(train={"tokens": 64 * 256, "save_every": 10, "eval_every": 30, "prompts": [], **train})
    return config, world, dataset


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_no_sound_one(
    damage: Callable[[Path], None], configured: Configured, dataset: Dataset
) -> None:
    """Checkpoints 30 (the best), 40 damaged, resumed at 30, stopped at 36: that one stays, and 40 keeps its content aside."""
    made, run = made_with(configured, dataset, keep_last=2), RunDir.from_name("a")
    run_until(made, "a", 40)
    damage(run.checkpoint(40))
    config, world, _ = made
    config = config.model_copy(update={"train": config.train.model_copy(update={"keep_last": 1})})
    events = run_until((config, world, dataset), "a", 36)
    resumed = next(event for event in events if isinstance(event, Resumed))
    assert resumed.step == 30
    assert "damaged-step-00000040" in resumed.damaged[0]
    assert isinstance(events[-1], Stopped)
    assert sound(run)[-1] == 36
    assert [path.name for path in run.set_aside()] == ["damaged-step-00000040"]
    run_until(made, "a", 0)
    run_until(made, "whole", 0)
    assert_equal(weights(RunDir.from_name("whole")), weights(run))
    assert [path.name for path in run.set_aside()] == ["damaged-step-00000040"]


def test_damage_below_the_checkpoint_that_was_resumed_counts_as_none(configured: Configured, dataset: Dataset) -> None:
    """Of 10, 20 and 30, with keep_last=3, 20 has a flipped bit: 10 stays until there are three sound ones without it."""
    made, run = made_with(configured, dataset, keep_last=3, eval_every=1000), RunDir.from_name("a")
    run_until(made, "a", 30)
    flip(run.checkpoint(20))
    run_until(made, "a", 40)
    assert run.steps() == [10, 20, 30, 40]
    run_until(made, "a", 50)
    assert run.steps() == [30, 40, 50]


def test_a_checkpoint_damaged_while_the_run_goes_on_counts_as_none(configured: Configured, dataset: Dataset) -> None:
    """Files that changed since they were written are hashed again, so that 20 stays when 30 is no use."""
    made, run = made_with(configured, dataset, keep_last=2, eval_every=1000), RunDir.from_name("a")

    def damage(step: int) -> None:
        while step == 38 and run.steps() != [20, 30]:  # 10 goes when 30 is written and known
            time.sleep(0.01)
        if step == 38:
            cut(run.checkpoint(30))

    run_until(made, "a", 40, damage)
    assert run.steps() == [20, 30, 40]
    run_until(made, "a", 45)
    assert run.steps() == [40, 45]


def test_the_best_is_the_best_of_the_sound_ones(configured: Configured, dataset: Dataset) -> None:
    """The checkpoint with the smallest loss is damaged: the next best stays in its place."""
    made, run = made_with(configured, dataset, keep_last=9, eval_every=10), RunDir.from_name("a")
    run_until(made, "a", 50)
    losses = {step: checkpoint_format.read_verified_state(run.checkpoint(step)).validation_loss or 9.0 for step in (10, 20, 30)}
    first, second, third = sorted(losses, key=lambda step: losses[step])
    flip(run.checkpoint(first))
    for step in (40, 50):
        state = checkpoint_format.read_verified_state(run.checkpoint(step)).model_copy(update={"validation_loss": 99.0})
        (run.checkpoint(step) / checkpoint_format.STATE).write_text(state.with_digest().to_text())
    Retention(run, 1, 0).prune()
    assert run.steps() == [second, 50]
    assert third not in run.steps()


def test_nothing_is_removed_before_something_newer_is_sound(configured: Configured, dataset: Dataset) -> None:
    made, run = made_with(configured, dataset, keep_last=9, eval_every=1000), RunDir.from_name("a")
    run_until(made, "a", 30)
    for step in (20, 30):
        flip(run.checkpoint(step))
    Retention(run, 1, 0).prune()
    assert run.steps() == [10, 20, 30]
    path, damaged = Retention(run, 1, 0).newest()
    assert path == run.checkpoint(10)
    assert [("damaged-step-000000" + step in what) for what, step in zip(damaged, ("30", "20"), strict=True)] == [True, True]
    assert run.steps() == [10]


def test_a_second_damage_of_a_step_has_a_name_of_its_own(configured: Configured, dataset: Dataset) -> None:
    made, run = made_with(configured, dataset, keep_last=9, eval_every=1000), RunDir.from_name("a")
    for _ in range(3):
        run_until(made, "a", 20)
        flip(run.checkpoint(20))
    run_until(made, "a", 30)
    assert {path.name for path in run.set_aside()} == {"damaged-step-00000020" + number for number in ("", "-2", "-3")}

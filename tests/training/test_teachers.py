"""Runs that learn from checkpoints beside the text: nearer to them, exact to resume, and only from ones that fit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.checkpoint.format import WEIGHTS
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import DataError, UsageError
from llamactl.planning.memory_estimate import estimate_memory
from llamactl.planning.step_time import estimate_step_time
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Stepped, Validated
from llamactl.training.signals import StopRequests
from llamactl.training.teachers import load_teachers, pin_teachers
from llamactl.training.trainer import train_run
from tests.conftest import make_dataset

Configured = Callable[..., tuple[Config, World]]
RATE = 1e11


def train(name: str, config: Config, world: World, dataset: Dataset, stop_at: int = 0) -> list[Stepped | Validated]:
    run, requests, found = RunDir.from_name(name), StopRequests(), []
    if not run.config_path.exists():
        run.start(config, {})
    for event in train_run(config, dataset, run, world, RATE, requests):
        if isinstance(event, Stepped | Validated):
            found.append(event)
            if event.step == stop_at:
                requests.stop = 15
    return found


@pytest.fixture
def teachers(configured: Configured, dataset: Dataset) -> list[str]:
    """Two runs of 20 steps that differ in their seed."""
    for seed in (1, 2):
        train(f"teacher-{seed}", *configured(train={"seed": seed}), dataset)
    return ["teacher-1", "teacher-2@20"]


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_a_student_learns_from_them(compiled: str, teachers: list[str], configured: Configured, dataset: Dataset) -> None:
    """And from teachers that know the text better than it can know it after the same steps."""
    losses = {}
    for names in ((), tuple(teachers)):
        config, world = configured(train={"teachers": names, "compile": compiled, "eval_every": 5})
        config = pin_teachers(config)
        events = train(f"student-{len(names)}", config, world, dataset)
        losses[len(names)] = [event.loss for event in events if isinstance(event, Validated)]
    assert losses[2] != losses[0]
    assert losses[2][1] < losses[0][1] + 0.02, "what teachers predict is smoother than the text"
    assert losses[2][-1] == pytest.approx(losses[0][-1], abs=0.1)


def test_they_are_pinned_by_their_weights(teachers: list[str], configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"teachers": tuple(teachers)})
    pinned = pin_teachers(config)
    assert pinned.train.teachers == ("teacher-1@20", "teacher-2@20")
    assert [len(digest) for digest in pinned.train.teachers_sha256] == [64, 64]
    assert pin_teachers(pinned) == pinned
    found = load_teachers(pinned, dataset, world)
    assert found is not None
    assert len(found.models) == 2
    other = pinned.with_train(teachers_sha256=pinned.train.teachers_sha256[::-1])
    with pytest.raises(DataError, match="no longer holds the weights"):
        pin_teachers(other)
    with pytest.raises(DataError, match="nosuch"):
        pin_teachers(config.with_train(teachers=("nosuch",)))
    weights = RunDir.from_name("teacher-1").checkpoint(20) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        pin_teachers(pinned)


def test_a_resumed_student_is_the_same(teachers: list[str], configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"teachers": tuple(teachers), "dropout": 0.1})
    config = pin_teachers(config)
    whole = train("whole", config, world, dataset)
    train("halves", config, world, dataset, stop_at=9)
    again = train("halves", config, world, dataset)
    assert again[0].step == 10
    assert [(event.step, event.loss) for event in whole[-len(again) :]] == [(event.step, event.loss) for event in again]
    both = [(RunDir.from_name(name).checkpoint(20) / WEIGHTS).read_bytes() for name in ("whole", "halves")]
    assert both[0] == both[1]


def test_one_that_does_not_fit_is_refused(
    teachers: list[str], configured: Configured, dataset: Dataset, corpus: Path, tmp_path: Path
) -> None:
    config, world = configured(train={"teachers": tuple(teachers)}, model={"context": 64})
    with pytest.raises(UsageError, match="shorter context"):
        load_teachers(config, dataset, world)
    config, world = configured(train={"teachers": tuple(teachers)})
    with pytest.raises(UsageError, match="another tokenizer"):
        load_teachers(config, make_dataset(tmp_path / "other", corpus, "bpe:300").open(), world)


def test_they_are_planned(configured: Configured) -> None:
    """Their weights, and a third of the work of a step for each."""
    config, world = configured()
    taught = config.with_train(teachers=("a@1", "b@1"))
    assert estimate_memory(taught, world).weights == 3 * estimate_memory(config, world).weights
    ratio = estimate_step_time(taught, world, RATE).step / estimate_step_time(config, world, RATE).step
    assert 1.3 < ratio < 1.7

"""Runs that learn from checkpoints beside the text: nearer to them, exact to resume, and only from ones that fit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llamactl.checkpoint.format import WEIGHTS
from llamactl.checkpoint.io import load_model
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import DataError, UsageError
from llamactl.planning.memory_estimate import estimate_memory
from llamactl.planning.step_time import estimate_step_time
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Stepped, Validated
from llamactl.training.signals import StopRequests
from llamactl.training.teachers import load_teachers, pin_teachers, pin_teachers_where_they_fit
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
def test_a_student_learns_what_they_predict(
    compiled: str, teachers: list[str], configured: Configured, dataset: Dataset
) -> None:
    """After the same steps it is nearer to their predictions than a run that saw the text alone."""
    distances = {}
    for names in ((), tuple(teachers)):
        config, world = configured(train={"teachers": names, "teacher_share": 1.0, "compile": compiled})
        config = pin_teachers(config, dataset)
        name = f"student-{len(names)}"
        train(name, config, world, dataset)
        taught = load_teachers(pin_teachers(config.with_train(teachers=tuple(teachers)), dataset), world)
        assert taught is not None
        student = load_model(RunDir.from_name(name).checkpoint(20), world.device)[0]
        tokens = torch.from_numpy(np.asarray(dataset.val[0][:1024], np.int64)).view(32, 32)
        with torch.no_grad():
            predicted = torch.stack([each(tokens).softmax(-1) for each in taught.models]).mean(0)
            distances[len(names)] = F.kl_div(student(tokens).log_softmax(-1), predicted, reduction="batchmean").item()
    assert distances[2] < 0.9 * distances[0]


def test_they_are_pinned_by_their_weights(teachers: list[str], configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"teachers": tuple(teachers)})
    pinned = pin_teachers(config, dataset)
    assert pinned.train.teachers == ("teacher-1@20", "teacher-2@20")
    assert [len(digest) for digest in pinned.train.teachers_sha256] == [64, 64]
    assert pin_teachers(pinned, dataset) == pinned
    found = load_teachers(pinned, world)
    assert found is not None
    assert len(found.models) == 2
    other = pinned.with_train(teachers_sha256=pinned.train.teachers_sha256[::-1])
    with pytest.raises(DataError, match="no longer hold the same weights"):
        pin_teachers(other, dataset, resumed=True)
    with pytest.raises(DataError, match="nosuch"):
        pin_teachers(config.with_train(teachers=("nosuch",)), dataset)
    weights = RunDir.from_name("teacher-1").checkpoint(20) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        pin_teachers(pinned, dataset)


def test_a_resumed_student_is_the_same(teachers: list[str], configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"teachers": tuple(teachers), "dropout": 0.1})
    config = pin_teachers(config, dataset)
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
    config, _ = configured(train={"teachers": tuple(teachers)}, model={"context": 64})
    with pytest.raises(UsageError, match="shorter context"):
        pin_teachers(config, dataset)
    config, _ = configured(train={"teachers": tuple(teachers)})
    with pytest.raises(UsageError, match="another tokenizer"):
        pin_teachers(config, make_dataset(tmp_path / "other", corpus, "bpe:300").open())
    with pytest.raises(UsageError, match="has 512 rows"):
        wider = config.model.model_copy(update={"vocab_size": 640})
        pin_teachers(config.model_copy(update={"model": wider}), dataset)


def test_of_some_sizes_those_are_left_whose_context_they_have(
    teachers: list[str], configured: Configured, dataset: Dataset
) -> None:
    fitting, _ = configured(train={"teachers": tuple(teachers)})
    longer, _ = configured(train={"teachers": tuple(teachers)}, model={"context": 64})
    assert pin_teachers_where_they_fit([longer, fitting], dataset) == [pin_teachers(fitting, dataset)]
    with pytest.raises(UsageError, match="shorter context"):
        pin_teachers_where_they_fit([longer], dataset)


@pytest.mark.parametrize(("names", "says"), [(["a", ""], "no name"), (["a", "b", "a@20"], "named twice")])
def test_names_are_checked(names: list[str], says: str, configured: Configured, dataset: Dataset) -> None:
    for name in "ab":
        train(name, *configured(train={"seed": ord(name)}), dataset)
    config, _ = configured(train={"teachers": tuple(names)})
    with pytest.raises(UsageError, match=says):
        pin_teachers(config, dataset)


def test_a_teacher_that_is_gone_is_named(teachers: list[str], configured: Configured, dataset: Dataset) -> None:
    """Its run was trained on, and kept other checkpoints."""
    config, world = configured(train={"teachers": tuple(teachers)})
    pinned = pin_teachers(config, dataset)
    shutil.rmtree(RunDir.from_name("teacher-1").checkpoint(20))
    with pytest.raises(DataError, match="The teacher teacher-1@20 can't be read") as caught:
        pin_teachers(pinned, dataset, resumed=True)
    assert "until it is over" in caught.value.why
    other = pinned.with_train(teachers_sha256=("0" * 64, *pinned.train.teachers_sha256[1:]))
    shutil.copytree(RunDir.from_name("teacher-2").checkpoint(20), RunDir.from_name("teacher-1").checkpoint(20))
    with pytest.raises(DataError, match="does not hold the weights"):
        load_teachers(other, world)


def test_they_are_planned(configured: Configured) -> None:
    """Their weights, and a third of the work of a step for each."""
    config, world = configured()
    taught = config.with_train(teachers=("a@1", "b@1"))
    needed = estimate_memory(taught, world)
    assert needed.teachers > 2 * needed.weights
    assert needed.total - needed.teachers == estimate_memory(config, world).total
    ratio = estimate_step_time(taught, world, RATE).step / estimate_step_time(config, world, RATE).step
    assert 1.3 < ratio < 1.7

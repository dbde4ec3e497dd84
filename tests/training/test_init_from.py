"""Runs that start from a checkpoint: its weights, its shape, its tokenizer, and nothing else in their place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, Tree, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World, init_device
from llamactl.errors import DataError, UsageError
from llamactl.model.llama import Llama
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer import bpe
from llamactl.training.build import build_objective
from llamactl.training.events import Resumed, Stepped
from llamactl.training.init_from import config_from_checkpoint, load_init_weights, pin_init_from
from llamactl.training.trainer import Trainer, train_run
from tests.conftest import TINY

Configured = Callable[..., tuple[Config, World]]
RATE = 1e11
LONGER: Tree = {"model": {"context": 64}}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(path / checkpoint_format.WEIGHTS).items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def source(configured: Configured, dataset: Dataset) -> Path:
    """The checkpoint of a short run named `a`."""
    config, world = configured(preset="tiny")
    run = RunDir.from_name("a")
    run.start(config, {})
    list(train_run(config, dataset, run, world, RATE))
    return run.checkpoint(20)


@pytest.fixture
def continued(source: Path, dataset: Dataset) -> Callable[..., tuple[Config, World]]:
    """A resolved config of a run that starts from it, with anything laid over."""

    def make(*layers: Tree, name: str = "a") -> tuple[Config, World]:
        config = config_from_checkpoint(name, [{"train": TINY["train"]}, {"train": {"tokens": 2560}}, *layers])
        world = init_device(config.train)
        return resolve_config(pin_init_from(config, dataset), dataset, world), world

    return make


def test_shape_and_preset_come_from_the_checkpoint(continued: Configured, source: Path) -> None:
    config, _ = continued()
    assert config.model == read_hf_config(source)
    assert (config.preset, config.optim.beta2) == ("tiny", build_config([preset_settings("tiny")]).optim.beta2)
    assert (config.train.init_from, len(config.train.init_sha256)) == ("a@20", 64)


@pytest.mark.parametrize(
    ("model", "factor"),
    [
        ({"context": 128}, 4.0),
        ({"context": 80}, 2.5),
        ({"context": 16}, 1.0),
        ({}, 1.0),
        ({"context": 128, "rope_scaling": 1.0}, 1.0),
        ({"context": 128, "rope_scaling": 8.0}, 8.0),
    ],
)
def test_positions_are_divided_by_as_much_as_the_context_grows(model: Tree, factor: float, continued: Configured) -> None:
    config, _ = continued({"model": model})
    assert config.model.rope_scaling == factor
    assert config.model.context == model.get("context", 32)


def test_a_scaled_model_is_scaled_further(continued: Configured, source: Path, dataset: Dataset) -> None:
    config, world = continued(LONGER)
    run = RunDir.from_name("b")
    list(train_run(config, dataset, run, world, RATE))
    found = read_hf_config(run.checkpoint(10))
    assert (found.context, found.rope_scaling) == (64, 2.0)
    path = str(run.checkpoint(10))
    assert config_from_checkpoint(path, []).model.rope_scaling == 2.0
    assert config_from_checkpoint(path, [{"model": {"context": 128}}]).model.rope_scaling == 4.0


def test_the_first_weights_are_the_checkpoints_and_the_rest_is_fresh(
    continued: Configured, source: Path, dataset: Dataset
) -> None:
    config, world = continued(LONGER)
    made = Trainer(config, dataset, RunDir.from_name("b"), world, RATE)
    assert list(made.load_checkpoint()) == []
    assert same(weights(source), made.model.state_dict())
    assert made.state.step == 0
    assert not any(optimizer.state for optimizer in made.optimizers)


def test_without_a_checkpoint_the_seed_decides(configured: Configured, dataset: Dataset) -> None:
    config, world = configured()
    model = build_objective(config, world).model
    load_init_weights(config, dataset, model)
    assert same(model.state_dict(), build_objective(config, world).model.state_dict())
    assert pin_init_from(config, dataset) == config


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_stopped_before_its_first_checkpoint_starts_from_the_same_weights(
    stop: int, continued: Configured, dataset: Dataset
) -> None:
    config, world = continued(LONGER, {"train": {"save_every": 5}})
    whole, stopped = RunDir.from_name("whole"), RunDir.from_name("stopped")
    reference = list(train_run(config, dataset, whole, world, RATE))
    first = train_run(config, dataset, stopped, world, RATE)
    for _ in range(stop):
        next(first)
    first.close()
    assert stopped.steps() == []
    again = list(train_run(config, dataset, stopped, world, RATE))
    losses = [[event.loss for event in events if isinstance(event, Stepped)] for events in (reference, again)]
    assert losses[0] == losses[1]
    assert same(weights(whole.checkpoint(10)), weights(stopped.checkpoint(10)))


def test_a_run_with_a_checkpoint_of_its_own_needs_the_other_no_more(
    continued: Configured, source: Path, dataset: Dataset
) -> None:
    config, world = continued(LONGER, {"train": {"save_every": 5}})
    run = RunDir.from_name("b")
    list(train_run(config, dataset, run, world, RATE))
    expected = weights(run.checkpoint(10))
    shutil.rmtree(run.checkpoint(10))
    shutil.rmtree(source)
    list(train_run(config, dataset, run, world, RATE))
    assert same(expected, weights(run.checkpoint(10)))
    shutil.rmtree(run.path)
    with pytest.raises(DataError, match="no checkpoint '20'"):
        list(train_run(config, dataset, run, world, RATE))


def test_other_weights_under_the_same_name_are_refused(continued: Configured, source: Path, dataset: Dataset) -> None:
    config, world = continued()
    shutil.rmtree(source)
    taken = take_snapshot(Llama(config.model), [])
    checkpoint_io.save_checkpoint(source, taken, config.model, dataset.tokenizer, State(step=20, tokens=0, seconds=0))
    with pytest.raises(DataError, match="no longer holds the weights"):
        list(train_run(config, dataset, RunDir.from_name("b"), world, RATE))


def test_damaged_weights_are_refused(continued: Configured, source: Path) -> None:
    content = (source / checkpoint_format.WEIGHTS).read_bytes()
    (source / checkpoint_format.WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        continued(name="a@20")


def test_a_checkpoint_elsewhere_is_remembered_by_its_whole_path(
    continued: Configured, source: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert continued(name=str(source))[0].train.init_from == "a@20"
    shutil.copytree(source, home / "copies" / "mine")
    monkeypatch.chdir(home)
    config, _ = continued(name="copies/mine")
    assert config.train.init_from == str(home / "copies" / "mine")
    assert config.preset == "150m"
    assert config.model == read_hf_config(source)


@pytest.mark.parametrize(
    ("key", "value"), [("n_layers", 3), ("tie_embeddings", True), ("rope_theta", 5e5), ("vocab_size", 640)]
)
def test_other_shapes_are_refused_by_name(key: str, value: object, continued: Configured) -> None:
    with pytest.raises(UsageError, match=f"model.{key}: .* -> {value}") as caught:
        continued({"model": {key: value}})
    assert "model.context and model.rope_scaling" in caught.value.why


def test_another_tokenizer_is_refused_with_the_command_that_mends_it(
    continued: Configured, source: Path, dataset: Dataset
) -> None:
    config, _ = continued()
    taken = take_snapshot(Llama(config.model), [])
    checkpoint_io.save_checkpoint(
        source.parent / "other", taken, config.model, bpe.byte_tokenizer(), State(step=1, tokens=0, seconds=0)
    )
    with pytest.raises(DataError) as caught:
        continued(name=str(source.parent / "other"))
    assert dataset.name in caught.value.what
    assert str(source.parent / "other") in caught.value.what
    assert f"llamactl prepare SOURCE --tokenizer {source.parent / 'other' / 'tokenizer.json'}" in caught.value.fix


def test_damage_to_the_newest_tokenizer_of_a_run_leaves_the_one_before(
    continued: Callable[..., tuple[Config, World]], dataset: Dataset
) -> None:
    config, world = continued({"train": {"save_every": 5, "eval_every": 5}})
    run = RunDir.from_name("child")
    run.start(config, {})
    list(train_run(config, dataset, run, world, RATE))
    last, before = sorted(run.steps())[-1], sorted(run.steps())[-2]
    (run.checkpoint(last) / "tokenizer_config.json").write_text("{")
    resumed = next(iter(train_run(config, dataset, run, world, RATE)))
    assert isinstance(resumed, Resumed)
    assert (resumed.step, len(resumed.damaged)) == (before, 1)

"""What a run takes: parts that add up, and that are what PyTorch takes where that can be counted."""

from collections.abc import Callable

import pytest
import torch

from llamactl.artifacts import Dataset
from llamactl.checkpoint import snapshot
from llamactl.config import Config
from llamactl.training.forecast import Pace, duration, memory, pace
from llamactl.training.optimizers import OPTIMIZERS
from llamactl.training.trainer import build_objective
from llamactl.training.world import World

Configured = Callable[..., tuple[Config, World]]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weights_and_optimizer_are_what_they_are(optimizer: str, configured: Configured) -> None:
    config, world = configured(optim={"name": optimizer})
    model = build_objective(config, world).model
    optimizers = OPTIMIZERS[optimizer](model, config.optim, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for each in optimizers:
        each.step()
    found = memory(config, world)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert found.weights == found.gradients == weights
    saved = snapshot(model, optimizers).nbytes
    assert found.weights + found.optimizer == pytest.approx(saved, rel=0.06)  # row memories and step counters are left out
    assert found.saving == pytest.approx(saved, rel=0.06)


def test_the_whole_is_the_larger_of_two_moments(configured: Configured) -> None:
    config, world = configured()
    found = memory(config, world)
    held = found.weights + found.gradients + found.optimizer + found.saving + found.program
    assert found.total == held + max(found.activations + found.logits, found.update)
    assert found.needed == found.total - found.program - found.saving
    many, _ = configured(train={"micro_batch": 8})
    few, _ = configured(train={"micro_batch": 2})
    assert memory(many, world).activations == 4 * memory(few, world).activations
    compiled, _ = configured(train={"compile": "on", "micro_batch": 8})
    assert memory(compiled, world).activations < memory(many, world).activations


def test_time_is_steps_and_what_is_between_them(configured: Configured) -> None:
    config, world = configured(train={"eval_every": 10, "eval_tokens": 256, "prompts": ()})
    taken = duration(config, world, 20, Pace(step=3.0, start=5.0))
    assert taken.steps == 60
    assert taken.looking == pytest.approx(2 * 1.0)  # two validations of a step's tokens, a third of a step each
    assert taken.total == 67
    talkative, _ = configured(train={"eval_every": 10, "eval_tokens": 256})
    assert duration(talkative, world, 20, Pace(3.0, 5.0)).looking > taken.looking


def test_a_faster_device_is_faster(dataset: Dataset, configured: Configured) -> None:
    config, world = configured()
    assert pace(config, world, 2e12).step == pytest.approx(pace(config, world, 1e12).step / 2)
    assert pace(config, world, 1e12).start == 0
    compiled, _ = configured(train={"compile": "on"})
    assert pace(compiled, world, 1e12).start > 0

"""A measurement is of the run that was asked for, and its parts add up."""

from collections.abc import Callable

import pytest

from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config
from llamactl.training import bench
from llamactl.training.sizing import flops_per_token
from llamactl.training.world import World

Configured = Callable[..., tuple[Config, World]]


def test_the_parts_of_a_step_add_up(configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "matrix_rate", lambda _: 1e11)
    config, world = configured()
    found = bench.training(config, dataset, RunDir.named("a"), world, steps=5)
    assert found.tokens_per_second == pytest.approx(256 / found.step)
    assert found.matrix_share == pytest.approx(found.tokens_per_second * flops_per_token(config.model) / 1e11)
    assert found.mfu == found.matrix_share, "without a data sheet the measured rate is the measure"
    assert 0 <= found.data < found.optimizer < found.step
    assert found.data + found.gradients + found.optimizer == pytest.approx(found.step, rel=0.5)
    assert not RunDir.named("a").path.exists()


def test_every_format_that_the_hardware_has_is_measured(configured: Configured) -> None:
    _, world = configured()
    found = bench.peak(world)
    assert set(found.rates) == {"fp32"}
    assert found.rates["fp32"] > 1e9
    assert found.sheet == 0

"""A measurement is of the run that was asked for, and its parts add up."""

from collections.abc import Callable

import pytest

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.planning.flops import flops_per_token
from llamactl.runs.run_dir import RunDir
from llamactl.training import benchmark as training_benchmark

Configured = Callable[..., tuple[Config, World]]


def test_the_parts_of_a_step_add_up(configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_benchmark, "matmul_flops", lambda device, dtype: 1e11)
    config, world = configured()
    found = training_benchmark.benchmark_training(config, dataset, RunDir.from_name("a"), world, steps=5)
    assert found.tokens_per_second == pytest.approx(256 / found.step)
    assert found.matrix_share == pytest.approx(found.tokens_per_second * flops_per_token(config.model) / 1e11)
    assert found.mfu == found.matrix_share, "without a data sheet the measured rate is the measure"
    assert 0 <= found.data < found.optimizer < found.step
    assert found.data + found.gradients + found.optimizer == pytest.approx(found.step, rel=0.5)
    assert not RunDir.from_name("a").path.exists()


def test_every_format_that_the_hardware_has_is_measured(configured: Configured) -> None:
    _, world = configured()
    found = training_benchmark.measure_device(world)
    assert set(found.rates) == {"fp32"}
    assert found.rates["fp32"] > 1e9
    assert found.sheet == 0

"""What a time buys follows from steps that are timed, not from what is expected of a device."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World, init_device
from llamactl.errors import OutOfSpace
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import resolve_config
from llamactl.planning.step_time import estimate_step_time
from llamactl.planning.timed import choose_in_time
from llamactl.runs.run_dir import RunDir
from llamactl.training import timed_budget
from llamactl.training.events import Stepped, Validated
from llamactl.training.signals import StopRequests
from llamactl.training.timed_budget import choose_budget, measure_step
from llamactl.training.trainer import train_run

RATE, SECONDS = 5e10, 60.0

Configured = Callable[..., tuple[Config, World]]


@pytest.fixture
def asked() -> tuple[Config, World]:
    settings = {"model": {"context": 32}, "train": {"device": "cpu", "precision": "fp32", "compile": "off"}}
    config = build_config([preset_settings("tiny"), settings])
    return config, init_device(config.train)


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0])
def test_steps_that_take_longer_buy_fewer_of_them(
    slower: float, asked: tuple[Config, World], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the plan of what is chosen ends in the time, by what was measured."""
    config, world = asked

    def measure(resolved: Config, *_: object) -> float:
        return slower * estimate_step_time(resolved, world, RATE).step

    monkeypatch.setattr(timed_budget, "measure_step", measure)
    monkeypatch.setattr("time.monotonic", lambda: 0.0)  # a slow machine takes seconds to choose
    chosen, rate, measured = choose_budget([config], dataset, world, RATE, SECONDS)
    assert measured
    assert rate == pytest.approx(RATE / slower)
    usual = choose_in_time([config], dataset, world, RATE / slower, SECONDS)
    assert chosen.train.tokens == pytest.approx(usual.train.tokens, rel=0.05)
    plan = make_plan(resolve_config(chosen, dataset, world), dataset, world, rate, measured)
    assert 0.8 * SECONDS < plan.duration.total <= 1.02 * SECONDS


@pytest.mark.parametrize("error", [OutOfSpace("The micro-batch does not fit into the memory."), torch.OutOfMemoryError("full")])
def test_what_can_not_be_measured_is_estimated(
    error: Exception, asked: tuple[Config, World], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are long against the time, several processes, a memory too small for a step."""
    config, world = asked
    calls = []

    def fail(*_: object) -> list[float]:
        calls.append(1)
        raise error

    monkeypatch.setattr(timed_budget, "_time_steps", fail)
    for found in (world, replace(world, size=2)):
        assert choose_budget([config], dataset, found, RATE, 20.0).measured is False
    with monkeypatch.context() as patched:
        patched.setattr(timed_budget, "free_memory", lambda _: 1_000_000)
        assert choose_budget([config], dataset, world, RATE, SECONDS).measured is False
    assert not calls
    estimated = choose_in_time([config], dataset, world, RATE, SECONDS)
    assert choose_budget([config], dataset, world, RATE, SECONDS) == (estimated, RATE, False)
    assert calls


def test_steps_that_were_timed_leave_no_trace(configured: Configured, dataset: Dataset) -> None:
    curves = []
    for timed in (False, True):
        config, world = configured(train={"tokens": 2_048})
        if timed:
            assert 0 < (measure_step(config, dataset, world, 2, StopRequests()) or 0) < 60
        events = train_run(config, dataset, RunDir.from_name(f"timed-{timed}"), world, rate=1e11)
        curves.append([event.loss for event in events if isinstance(event, Stepped | Validated)])
    assert len(curves[0]) > 8
    assert curves[0] == curves[1]
    assert sorted(path.name for path in RunDir.from_name("timed-True").path.parent.iterdir()) == ["timed-False", "timed-True"]

"""Compiled blocks compute what eager ones do, and a machine without a compiler trains all the same."""

from collections.abc import Callable

import pytest
import torch

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.runs.run_dir import RunDir
from llamactl.training import compile as training_compile
from llamactl.training.events import Degraded, Sampled, Stepped, Validated
from llamactl.training.trainer import Trainer, train_run

Configured = Callable[..., tuple[Config, World]]


@pytest.mark.slow
def test_the_curve_is_the_eager_one(configured: Configured, dataset: Dataset) -> None:
    """20 steps of two micro-batches with validations in between, to 1e-4 nats; a checkpoint has the same names."""
    curves, names = [], []
    for switch in ("off", "on"):
        config, world = configured(train={"compile": switch, "micro_batch": 4, "eval_every": 10})
        run = RunDir.from_name(switch)
        events = list(train_run(config, dataset, run, world, rate=1e11))
        assert not [event for event in events if isinstance(event, Degraded)]
        assert len([event for event in events if isinstance(event, Sampled)]) == 6
        curves.append([event.loss for event in events if isinstance(event, Stepped | Validated)])
        names.append(set(Trainer(config, dataset, run, world, rate=1e11).model.state_dict()))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert len(curves[0]) == 22
    assert names[0] == names[1]


def test_without_a_compiler_training_goes_on_and_says_so_once(
    configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", fail)
    config, world = configured(train={"compile": "on", "tokens": 512})
    events = list(train_run(config, dataset, RunDir.from_name("a"), world, rate=1e11))
    notices = [event.why for event in events if isinstance(event, Degraded)]
    assert notices == ["without torch.compile: RuntimeError: No working C++ compiler found"]
    assert len([event for event in events if isinstance(event, Stepped)]) == 2


def test_what_runs_eagerly_is_not_compiled() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with training_compile.disable_compile():
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert not compiled
    double(torch.ones(2))
    assert len(compiled) == 1

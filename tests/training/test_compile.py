"""Compiled blocks compute what eager ones do, and a machine without a compiler trains all the same."""

from collections.abc import Callable

import pytest
import torch

from llamactl.checkpoint.format import STATE, read_state
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.runs.run_dir import RunDir
from llamactl.training import compile as training_compile
from llamactl.training import trainer
from llamactl.training.events import Degraded, Resumed, Sampled, Stepped, Validated
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
    run = RunDir.from_name("a")
    events = list(train_run(config, dataset, run, world, rate=1e11))
    notices = [event.why for event in events if isinstance(event, Degraded)]
    assert notices == ["without torch.compile: RuntimeError: No working C++ compiler found"]
    assert len([event for event in events if isinstance(event, Stepped)]) == 2
    assert read_state(run.checkpoint(2)).environment["compile"] == "off"  # what computed the steps, not what was asked for
    longer = config.model_copy(update={"train": config.train.model_copy(update={"tokens": 768})})
    resumed = next(train_run(longer, dataset, run, world, rate=1e11))
    assert isinstance(resumed, Resumed)
    assert not resumed.differs


def test_a_resume_on_another_engine_is_told(configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the settings are the same, and only the compiler is gone; what an older checkpoint lacks is not named."""
    monkeypatch.setattr(trainer, "compile_objective", lambda _: "")  # as if it had compiled
    config, world = configured(train={"compile": "on", "tokens": 512})
    run = RunDir.from_name("a")
    list(train_run(config, dataset, run, world, rate=1e11))
    state = read_state(run.checkpoint(2))
    engine = ("device", "processor", "instructions", "precision", "threads", "compile")
    assert all(state.environment[name] for name in engine)
    monkeypatch.setattr(trainer, "compile_objective", lambda _: "gone")

    def differences(**changed: object) -> set[str]:
        environment = {name: value for name, value in (state.environment | changed).items() if value is not None}
        text = state.model_copy(update={"environment": environment}).with_digest().to_text()
        (run.checkpoint(2) / STATE).write_text(text)
        resumed = next(train_run(longer, dataset, run, world, rate=1e11))
        assert isinstance(resumed, Resumed)
        return set(resumed.differs)

    longer = config.model_copy(update={"train": config.train.model_copy(update={"tokens": 768})})
    assert differences() == {"compile on -> off"}
    other = differences(processor="Another CPU", compile="off")
    assert other == {f"processor Another CPU -> {state.environment['processor']}"}
    assert not differences(processor=None, compile=None, instructions=None)


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

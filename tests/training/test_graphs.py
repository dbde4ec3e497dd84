"""CUDA graphs of micro-batches, with a stand-in for a graph: tests/rehearsal captures real ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from llamactl.config.schema import Config
from llamactl.corpus.batches import Batch
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.hardware.device import Precision
from llamactl.model.objective import NextToken
from llamactl.runs.run_dir import RunDir
from llamactl.training import graphs, trainer
from llamactl.training.build import build_objective
from llamactl.training.events import Degraded, Stepped
from llamactl.training.gradients import accumulate_gradients, add_gradients
from llamactl.training.graphs import GraphedGradients, graph_gradients
from llamactl.training.trainer import train_run

Configured = Callable[..., tuple[Config, World]]
GPU = World(torch.device("cuda"), Precision(torch.float32, ""))
SCALER = torch.amp.GradScaler("cpu", enabled=False)


def batch(seed: int, share: float = 1.0, windows: int = 2) -> Batch:
    rows = torch.randint(0, 512, (windows, 33), generator=torch.Generator().manual_seed(seed))
    return Batch(rows[:, :-1], rows[:, 1:], share)


@pytest.fixture
def objective(configured: Configured) -> NextToken:
    return build_objective(*configured())


@pytest.fixture
def stand_in(objective: NextToken, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let a replay do the work anew where the graph was captured, or nothing; to capture it does nothing, as on a GPU."""

    def install(works: bool) -> None:
        made: list[GraphedGradients] = []

        class Graph:
            def replay(self) -> None:
                held = made[-1]
                if works:
                    held._loss.copy_(add_gradients(objective, held._batch._replace(share=held._share), GPU, SCALER))

        class Known(GraphedGradients):
            def __init__(self, work: Callable[[Batch], Tensor], example: Batch) -> None:
                made.append(self)
                super().__init__(lambda _: torch.zeros(()), example)

        @contextmanager
        def capture(graph: object) -> Iterator[None]:
            assert isinstance(graph, Graph)
            yield

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(graphs, "capture_graph", capture)
        monkeypatch.setattr(graphs, "GraphedGradients", Known)

    return install


def gradients(objective: NextToken) -> list[Tensor]:
    return [weight.grad.clone() for weight in objective.parameters() if weight.grad is not None]


def test_a_graph_adds_the_gradients_of_each_batch_with_its_share(
    objective: NextToken, stand_in: Callable[[bool], None]
) -> None:
    stand_in(True)
    parts = [batch(1, 0.25), batch(2, 0.75)]
    world = World(torch.device("cpu"), GPU.precision)
    loss = accumulate_gradients(objective, parts, world, SCALER)
    expected = gradients(objective)
    objective.zero_grad()
    graph, reason = graph_gradients(objective, parts, GPU, SCALER)
    assert graph
    assert not reason
    assert not any(gradient.any() for gradient in gradients(objective)), "the comparison leaves nothing behind"
    places = [weight.grad.data_ptr() for weight in objective.parameters() if weight.grad is not None]
    assert accumulate_gradients(objective, parts, world, SCALER, graph).item() == pytest.approx(loss.item())
    torch.testing.assert_close(gradients(objective), expected)
    assert places == [weight.grad.data_ptr() for weight in objective.parameters() if weight.grad is not None]


def test_a_graph_that_computes_something_else_is_not_used(objective: NextToken, stand_in: Callable[[bool], None]) -> None:
    stand_in(False)
    graph, reason = graph_gradients(objective, [batch(1)], GPU, SCALER)
    assert graph is None
    assert "other gradients" in reason
    assert not gradients(objective)


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate", "operation not permitted when capturing\nand so on"]
)
def test_what_can_not_be_captured_says_why_and_leaves_no_gradients(
    message: str, objective: NextToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def __init__(self) -> None:
            raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Refused)
    assert graph_gradients(objective, [batch(1)], GPU, SCALER) == (None, message.splitlines()[0])
    assert not gradients(objective)


def test_micro_batches_of_two_sizes_have_no_graph(objective: NextToken) -> None:
    _, reason = graph_gradients(objective, [batch(1), batch(2, windows=1)], GPU, SCALER)
    assert "not alike" in reason


def test_documents_kept_apart_have_no_graph_as_their_number_varies(objective: NextToken) -> None:
    apart = batch(1)._replace(documents=torch.tensor([0, 5, 64], dtype=torch.int32))
    _, reason = graph_gradients(objective, [apart], GPU, SCALER)
    assert "another number of them" in reason


def test_where_there_is_no_gpu_training_goes_on_and_says_so_once(
    configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "compile_objective", lambda _: "")
    curves = []
    for setting in ("off", "graphs"):
        config, world = configured(train={"compile": setting, "tokens": 512})
        events = list(train_run(config, dataset, RunDir.from_name(setting), world, rate=1e11))
        curves.append([event.loss for event in events if isinstance(event, Stepped)])
    assert [event.why for event in events if isinstance(event, Degraded)] == [
        "without CUDA graphs: they are for training on one NVIDIA GPU"
    ]
    assert curves[0] == curves[1]

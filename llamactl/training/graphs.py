"""The gradients of a micro-batch as a CUDA graph, for models so small that launching kernels takes longer than their work."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from llamactl.corpus.batches import Batch
from llamactl.distributed.context import World
from llamactl.hardware.graphs import capture_graph
from llamactl.hardware.memory import release_cached_memory
from llamactl.training.compile_cache import guard_compilation
from llamactl.training.gradients import add_gradients, zero_gradients

# Of loss and gradient norm: sums in another order differ by less, another batch or weights of another step by more.
TOLERANCE = 1e-2


class GraphedGradients:
    """The gradients of a micro-batch as one launch. They are added where they were captured, so they must stay allocated."""

    def __init__(self, work: Callable[[Batch], Tensor], example: Batch) -> None:
        """Capture `work`, which adds gradients and returns a loss, for batches like an example; raises RuntimeError."""
        self._batch = example._replace(**{name: torch.zeros_like(tensor) for name, tensor in _tensors(example).items()})
        # In a tensor, as a graph would repeat a number.
        self._share = torch.zeros((), device=example.inputs.device)
        self._graph = torch.cuda.CUDAGraph()
        with capture_graph(self._graph):
            self._loss = work(self._batch._replace(share=self._share))

    def __call__(self, batch: Batch) -> Tensor:
        """Add the gradients of a batch and return its loss, which the next call changes."""
        own = _tensors(self._batch)
        for name, tensor in _tensors(batch).items():
            own[name].copy_(tensor)
        self._share.fill_(batch.share)
        self._graph.replay()
        return self._loss


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}


def graph_gradients(
    forward: nn.Module, micro_batches: Sequence[Batch], world: World, scaler: torch.amp.GradScaler
) -> tuple[GraphedGradients | None, str]:
    """Capture the gradients of a step's micro-batches; return the graph, or None and the reason.

    The graph must give loss and gradient norm of the same work without one. With it the gradients are zeros, else None.
    """
    if world.device.type != "cuda" or world.size > 1:
        return None, "they are for training on one NVIDIA GPU"
    if any(batch.documents is not None for batch in micro_batches):
        return None, "documents are kept apart, and each micro-batch has another number of them"
    layouts = [{name: tensor.shape for name, tensor in _tensors(batch).items()} for batch in micro_batches]
    if layouts.count(layouts[0]) < len(layouts):
        return None, "the micro-batches of a step are not alike"
    try:
        return _capture_and_compare(partial(add_gradients, forward, world=world, scaler=scaler), micro_batches[-1], forward), ""
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
    # Only here, as the traceback holds the tensors of what failed.
    forward.zero_grad()
    release_cached_memory(world.device)
    return None, reason


def _capture_and_compare(work: Callable[[Batch], Tensor], batch: Batch, forward: nn.Module) -> GraphedGradients:
    """Capture `work`; raises RuntimeError where the graph computes something else on a batch."""
    # Before all else, as memory that a gradient has a part of can't be given back, such as that of logits.
    for weight in forward.parameters():
        weight.grad = torch.zeros_like(weight)
    # Without a graph first, as it compiles and loads libraries, which can't be captured.
    with guard_compilation():
        expected = _measure(work, batch, forward)
    graph = GraphedGradients(work, batch)
    if not torch.allclose(_measure(graph, batch, forward), expected, rtol=TOLERANCE, equal_nan=True):
        raise RuntimeError("one computes other gradients than PyTorch without it")
    return graph


def _measure(work: Callable[[Batch], Tensor], batch: Batch, forward: nn.Module) -> Tensor:
    """Return loss and gradient norm of a batch as a tensor of two numbers, and set the gradients to zero."""
    loss = work(batch)
    norm = nn.utils.get_total_norm([weight.grad for weight in forward.parameters() if weight.grad is not None])
    measured = torch.stack([loss, norm])
    zero_gradients(forward, keep=True)
    return measured

"""CUDA graphs: the work of hundreds of launches as one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def capture_graph(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Record in `graph` what the current GPU is asked to do, without doing it; raises RuntimeError."""
    # The outer context, as a capture that fails leaves PyTorch with the stream of the graph. Other threads, as those of `serve`
    # or the one that loads batches, may use the device meanwhile.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        yield

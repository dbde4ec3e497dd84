"""Steps of one token for rows of a cache: by the native step, as a CUDA graph, or by PyTorch, whichever is fastest."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial

import torch
from torch import Tensor

from llamactl.hardware.graphs import capture_graph
from llamactl.model.attention import kernels_for_any_length
from llamactl.model.cache import KVCache, RowsCache
from llamactl.model.llama import Llama
from llamactl.model.native_step import NativeStep, most_sequences, native_step

CAPTURED_AFTER = 8  # steps: a short continuation is over before a graph is captured


@torch.inference_mode()
def model_step(model: Llama, tokens: Tensor, cache: KVCache, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return the logits of the next token, B V in fp32, and the logarithms of the sums of their exponentials, B 1.

    Those of the padding rows of the vocabulary are -inf.
    """
    with kernels_for_any_length(tokens.device):
        hidden = model.hidden(tokens, cache)[:, -1]
    logits: Tensor = model.lm_head(hidden).float()
    logits[:, vocab_size:] = -torch.inf
    return logits, logits.logsumexp(-1, keepdim=True)


class GraphedStep:
    """The step of one token per sequence as a CUDA graph: one launch, where hundreds would take longer than their work."""

    def __init__(self, model: Llama, cache: KVCache, vocab_size: int, positions: Sequence[int]) -> None:
        """Capture the graph, for the buffers of `cache` and the positions of the next tokens; raises RuntimeError."""
        keys = cache.layers[0].keys
        self.positions, self._known = torch.tensor(positions, device=keys.device), list(positions)
        last = model.config.context - 1
        self.rows = RowsCache(cache, torch.arange(len(keys), device=keys.device), self.positions, last + 1)
        self.tokens = torch.zeros(len(keys), 1, dtype=torch.int64, device=keys.device)
        # The first runs allocate what libraries keep, which must not happen while a graph is captured.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                model_step(model, self.tokens, self.rows, vocab_size)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with capture_graph(self.graph):
            self.scores = model_step(model, self.tokens, self.rows, vocab_size)
            self.positions.add_(1).clamp_(max=last)  # a row that nobody reads may come to its end
        self._last = last

    def __call__(self, tokens: Tensor, rows: Tensor | None, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what `model_step` does for all B rows, in tensors that the next call changes, each with its own position.

        `tokens` (R 1) are those of some `rows` (R, int64), or of all (None). Others store what nobody reads where their next
        token will be; one at position 0 is empty, and may store it anywhere.
        """
        if rows is None:
            self.tokens.copy_(tokens)
        else:
            self.tokens.index_copy_(0, rows, tokens)
        # Only where texts have come, as such a copy waits for the device.
        if any(position not in (0, known) for position, known in zip(positions, self._known, strict=True)):
            self.positions.copy_(torch.tensor(positions))
            self._known = list(positions)
        self.graph.replay()
        self._known = [min(position + 1, self._last) for position in self._known]
        return self.scores


def capture_step(model: Llama, cache: KVCache, vocab_size: int, positions: Sequence[int]) -> GraphedStep | None:
    """Capture the step of one token where that is possible: on one GPU, in a process that shares no work with others."""
    if model.model.embed_tokens.weight.device.type != "cuda" or torch.distributed.is_initialized():
        return None
    try:
        return GraphedStep(model, cache, vocab_size, positions)
    except RuntimeError:  # an operator that can't be captured, as those of some layouts of weights
        return None


class RowSteps:
    """Steps of one token for sequences that have rows of a cache, and lengths of their own."""

    def __init__(self, model: Llama, cache: KVCache, vocab_size: int) -> None:
        """Take a model on the device of the cache; `vocab_size` is that of the tokenizer."""
        self._model, self._cache, self._vocab_size = model, cache, vocab_size
        self._find_native = lru_cache(lambda: native_step(model, cache, vocab_size))  # on first use: a model is tried first
        self._most = most_sequences(cache)
        # Kept, as the copy to a device waits for it and texts stay in their rows.
        self._to_device = lru_cache(8)(partial(torch.tensor, device=cache.layers[0].keys.device))
        self._native: NativeStep | None = None  # of the last call
        self._graph: GraphedStep | None = None
        self._calls = 0

    def __call__(self, tokens: Tensor, rows: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what `model_step` does for one more token of each of some rows (R 1), in order, which the cache then has.

        `lengths` is how many tokens each row of the cache has, also those that are left out.
        """
        positions = [lengths[row] for row in rows]
        self._native = self._find_native() if len(rows) <= self._most else None
        if self._native:
            return self._native(tokens, positions, rows)
        if self._calls == CAPTURED_AFTER:
            self._graph = capture_step(self._model, self._cache, self._vocab_size, lengths)
        self._calls += 1
        everything = len(rows) == len(lengths)
        if self._graph and everything:
            return self._graph(tokens, None, lengths)
        if self._graph:
            at = self._to_device(tuple(rows))
            logits, totals = self._graph(tokens, at, lengths)
            return logits[at], totals[at]
        if everything and len(set(lengths)) == 1:
            self._cache.length = positions[0]
            return model_step(self._model, tokens, self._cache, self._vocab_size)
        chosen, places = self._to_device(tuple(rows)), torch.tensor(positions, device=tokens.device)
        cache = RowsCache(self._cache, chosen, places, max(positions) + 1)
        return model_step(self._model, tokens, cache, self._vocab_size)

    def pause_threads(self) -> AbstractContextManager[None]:
        """Return a context for work with the logits, in which the native step's threads are not in others' way."""
        return self._native.pause_threads() if self._native else nullcontext()

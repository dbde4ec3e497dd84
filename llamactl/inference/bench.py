"""How fast a model writes, held against how fast its weights can be read."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from llamactl.model.decode import Picker, decode
from llamactl.model.llama import Llama
from llamactl.model.quantise import fastest

WARM_UP = 2  # steps
MATRICES, ROWS, COLUMNS = 40, 2048, 768  # more than any cache holds


@dataclass(frozen=True)
class Decoded:
    """Decoding at one batch: seconds to the first token, tokens a second, and the share of the rate weights are read at."""

    batch: int
    first: float
    tokens_per_second: float
    share: float


def decoding(model: Llama, batch: int, prompt: int, new: int, rate: float) -> Decoded:
    """Go on from random prompts, greedily, and time each step; `rate` is in bytes a second."""
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    device = model.model.embed_tokens.weight.device
    times = list(islice(_timed(model, ids, torch.Generator(device)), new))
    step = statistics.median(times[1 + WARM_UP :])
    return Decoded(batch, times[0], batch / step, step_bytes(model, batch, prompt + new // 2) / step / rate)


def step_bytes(model: Llama, batch: int, length: int) -> int:
    """Bytes that a step has to read: every weight but the embedding, of which it needs a few rows, and the cache."""
    config = model.config
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if not config.tied:
        del tensors[id(model.model.embed_tokens.weight)]
    cached = 2 * config.layers * config.kv_heads * config.head_width * model.model.embed_tokens.weight.element_size()
    return sum(tensor.nbytes for tensor in tensors.values()) + batch * length * cached


def reading_rate(device: torch.device, tries: int = 5) -> float:
    """Bytes a second at which matrix-vector products in fp32 read their matrices: the best of a few rounds.

    By the quickest way that this PyTorch has.
    """
    matrices = fastest([nn.Linear(COLUMNS, ROWS, bias=False, device=device) for _ in range(MATRICES)])
    x = torch.randn(1, COLUMNS, device=device)

    @torch.inference_mode()
    def round_trip() -> float:
        _finish(device)
        started = time.perf_counter()
        for matrix in matrices:
            matrix(x)
        _finish(device)
        return time.perf_counter() - started

    return MATRICES * ROWS * COLUMNS * 4 / min(round_trip() for _ in range(tries))


def _timed(model: Llama, ids: list[list[int]], generator: torch.Generator) -> Iterator[float]:
    """Seconds of each step, the first of which reads the prompt."""
    device = model.model.embed_tokens.weight.device
    steps = decode(model, ids, model.config.vocab_size, Picker(temperature=0), generator)
    while True:
        _finish(device)
        started = time.perf_counter()
        next(steps)
        _finish(device)
        yield time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()

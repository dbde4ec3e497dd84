"""Measure the speed of decoding, and compare it with the rate at which the weights can be read from memory."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from llamactl.hardware.throughput import synchronize, time_call
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama

WARM_UP = 2  # steps
ROWS, COLUMNS = 256, 1 << 18  # 268 MB in fp32: more than a CPU's cache holds


@dataclass(frozen=True)
class Decoded:
    """The speed of decoding at one batch size: seconds to the first token, and tokens per second of all sequences.

    `read_rate` is that at which a step reads weights and cache, in bytes per second.
    """

    batch: int
    first: float
    tokens_per_second: float
    read_rate: float


def benchmark_decoding(model: Llama, batch: int, prompt: int, new: int) -> Decoded:
    """Decode `new` tokens greedily from random prompts of up to `prompt` tokens, as the context allows, and time each step."""
    context = model.config.context
    prompt = min(prompt, context - 1)
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    times = list(islice(_timed(model, ids), new))
    step = statistics.median(times[1 + WARM_UP :])
    return Decoded(batch, times[0], batch / step, step_bytes(model, batch, min(context, prompt + new // 2)) / step)


def step_bytes(model: Llama, batch: int, length: int) -> int:
    """Return the bytes that a decoding step reads: the cache and all weights except an untied embedding (only a few rows)."""
    config = model.config
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if not config.tie_embeddings:
        del tensors[id(model.model.embed_tokens.weight)]
    cached = 2 * config.n_layers * config.n_kv_heads * config.head_dim * model.model.embed_tokens.weight.element_size()
    return sum(tensor.nbytes for tensor in tensors.values()) + batch * length * cached


def reading_rate(device: torch.device, tries: int = 5) -> float:
    """Measure the bytes per second at which PyTorch reads memory, by sums of rows: the best of `tries` rounds.

    The native step, which fetches ahead, may read faster.
    """
    rows = torch.ones(ROWS, COLUMNS, device=device)
    return rows.nbytes / min(time_call(lambda: rows.sum(1), device) for _ in range(tries))


def _timed(model: Llama, ids: list[list[int]]) -> Iterator[float]:
    """Yield the seconds of each decoding step, the first of which encodes the prompts."""
    device = model.model.embed_tokens.weight.device
    steps = decode_tokens(model, ids, model.config.vocab_size, Sampler(temperature=0), range(len(ids)))
    while True:
        synchronize(device)
        started = time.perf_counter()
        next(steps)
        synchronize(device)
        yield time.perf_counter() - started

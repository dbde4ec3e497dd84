"""Validation during training: the loss on held-out text, and samples after fixed prompts."""

import math
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np
import torch

from llamactl.config.schema import Config
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.distributed.parallelize import unsharded_root
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.training.compile import disable_compile


class Validation(NamedTuple):
    """A loss in nats per token, bits per byte of text, the tokens they were measured on, and the standard error of the loss."""

    loss: float
    bits_per_byte: float
    tokens: int
    loss_error: float


@torch.no_grad()
def validate_model(objective: NextToken, dataset: Dataset, config: Config, world: World) -> Validation | None:
    """Measure the loss on `eval_tokens` tokens of the held-out windows; None where there is no window.

    Bits per byte do not depend on the tokenizer. Control tokens have no bytes, so they leave them out. The standard error
    is over windows, as tokens of one window are not independent.
    """
    windows = Windows(dataset.val, config.model.context)
    if not len(windows):
        return None
    count = max(1, min(len(windows), config.train.eval_tokens // config.model.context))
    # Evenly spaced windows, not random ones: each validation of a run measures the same text, from all of it.
    indices = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
    lengths = torch.from_numpy(dataset.byte_lengths)
    # Nats, nats of text, bytes of text, and the squares of the windows' nats.
    sums = torch.zeros(4, dtype=torch.float64)
    # Every rank runs the same number of batches, as FSDP's gathers need all of them; a surplus one has `counts` False.
    for start, counts in world.shard_evenly(range(0, count, config.train.micro_batch)):
        inputs, targets, *_ = windows.batch(indices[start : start + config.train.micro_batch])
        # Eager: its shapes are rare, and it checks the compiled loss against an uncompiled one.
        with disable_compile(), world.precision.compute(world.device):
            losses = objective.per_token(inputs.to(world.device), targets.to(world.device)).cpu().double()
        text = losses[lengths[targets] > 0]
        sums += counts * torch.stack([losses.sum(), text.sum(), lengths[targets].sum(), losses.sum(1).square().sum()])
    nats, text_nats, text_bytes, squares = world.all_reduce_sum(sums).tolist()
    variance = max(0.0, squares / count - (nats / count) ** 2)
    error = math.sqrt(variance / (count - 1)) / windows.context if count > 1 else math.inf
    tokens = count * windows.context
    return Validation(nats / tokens, text_nats / math.log(2) / max(1.0, text_bytes), tokens, error)


def sample_prompts(objective: NextToken, dataset: Dataset, config: Config, world: World) -> Iterator[tuple[str, str]]:
    """Yield each of `train.prompts` with a sample after it, drawn with `train.seed` plus the prompt's index."""
    # Only rank 0 prints samples, but a sharded model can't run unless all its ranks take part.
    if not (world.is_main or world.shards > 1):
        return
    for number, prompt in enumerate(config.train.prompts):
        with disable_compile(), unsharded_root(objective, world):
            text = sample_prompt(objective.model, prompt, config.train.seed + number, dataset, config)
        yield prompt, text


def sample_prompt(model: Llama, prompt: str, seed: int, dataset: Dataset, config: Config) -> str:
    """Sample up to `train.sample_tokens` tokens after a prompt; return their text, up to the end of the document."""
    tokenizer = dataset.tokenizer
    tokens = [tokenizer.encode_opening(prompt)]
    decoding = (step.tokens.item() for step in decode_tokens(model, tokens, tokenizer.vocab_size, Sampler(), [seed]))
    return tokenizer.decode(
        map(int, takewhile(lambda token: token != tokenizer.end, islice(decoding, config.train.sample_tokens)))
    )

"""Validation during training: the loss on held-out text, and samples after fixed prompts."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamactl.config.schema import Config
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.targets import window_rule
from llamactl.distributed.context import World
from llamactl.distributed.parallelize import unsharded_root
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.tokenizer.chat import TURN_END, Message, encode_chat
from llamactl.training.compile import disable_compile
from llamactl.training.gradients import to_device


class Validation(NamedTuple):
    """A loss in nats per token, bits per byte of text, the tokens they were measured on, and the standard error of the loss."""

    loss: float
    bits_per_byte: float
    tokens: int
    loss_error: float


@torch.no_grad()
def validate_model(objective: NextToken, dataset: Dataset, config: Config, world: World) -> Validation | None:
    """Measure the loss on `eval_tokens` tokens of the held-out windows; None where no target counts.

    Bits per byte do not depend on the tokenizer. Control tokens have no bytes, so they leave them out. The standard error
    is over windows, as tokens of one window are not independent.
    """
    windows = Windows(dataset.val, config.model.context, window_rule(dataset, config.data, config.model.context))
    if not len(windows):
        return None
    count = max(1, min(len(windows), config.train.eval_tokens // config.model.context))
    # Evenly spaced windows, not random ones: each validation of a run measures the same text, from all of it.
    indices = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
    lengths = torch.from_numpy(dataset.byte_lengths)
    # Nats, tokens, nats of text, bytes of text, and of the windows' nats n and tokens t the sums of n n, n t and t t.
    sums = torch.zeros(7, dtype=torch.float64)
    # Every rank runs the same number of batches, as FSDP's gathers need all of them; a surplus one has `counts` False.
    for start, counts in world.shard_evenly(range(0, count, config.train.micro_batch)):
        batch = to_device(windows.batch(indices[start : start + config.train.micro_batch]), world.device)
        # Eager: its shapes are rare, and it checks the compiled loss against an uncompiled one.
        with disable_compile(), world.precision.compute(world.device):
            losses = objective.per_token(batch.inputs, batch.targets, batch.documents).cpu().double()
        sums += counts * _window_sums(losses, batch.targets.cpu(), lengths)
    nats, tokens, text_nats, text_bytes, *products = world.all_reduce_sum(sums).tolist()
    if not tokens:
        return None
    # The standard error of a ratio of two sums over windows (Cochran 1977, 2.11).
    loss = nats / tokens
    residuals = products[0] - 2 * loss * products[1] + loss**2 * products[2]
    error = math.sqrt(max(0.0, residuals) * count / (count - 1)) / tokens if count > 1 else math.inf
    return Validation(loss, text_nats / math.log(2) / max(1.0, text_bytes), round(tokens), error)


def _window_sums(losses: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Sum what a validation is made of over a batch, from the nats of each target (B T) and the bytes of each id."""
    counted = targets >= 0
    sizes = lengths[targets.clamp(min=0)] * counted
    nats, tokens = losses.sum(1), counted.sum(1).double()
    sums = (losses, counted, losses[sizes > 0], sizes, nats * nats, nats * tokens, tokens * tokens)
    return torch.stack([each.sum().double() for each in sums])


def sample_prompts(objective: NextToken, dataset: Dataset, config: Config, world: World) -> Iterator[tuple[str, str]]:
    """Yield each of `train.prompts` with a sample after it, drawn with `train.seed` plus the prompt's index."""
    # Only rank 0 prints samples, but a sharded model can't run unless all its ranks take part.
    if not (world.is_main or world.shards > 1):
        return
    for number, prompt in enumerate(config.train.prompts):
        with disable_compile(), unsharded_root(objective, world):
            text = sample_prompt(objective.model, prompt, config.train.seed + number, dataset, config, world.shards > 1)
        yield prompt, text


def sample_prompt(model: Llama, prompt: str, seed: int, dataset: Dataset, config: Config, is_sharded: bool = False) -> str:
    """Sample up to `train.sample_tokens` tokens after a prompt; return their text, up to the end of the document.

    A model that learns to answer gets the prompt as a question, and its text ends with its turn. All ranks of one that
    `is_sharded` decode as many tokens, as each waits for the others' weights, and unlike GPUs may draw other tokens.
    """
    tokenizer = dataset.tokenizer
    answers = config.data.loss_on == "assistant" and tokenizer.chat_template
    question: list[Message] = [{"role": "user", "content": prompt}]
    tokens = [encode_chat(tokenizer, question, generation_prompt=True) if answers else tokenizer.encode_opening(prompt)]
    ends = {tokenizer.end, tokenizer.controls[TURN_END] if answers else tokenizer.end}
    steps = islice(decode_tokens(model, tokens, tokenizer.vocab_size, Sampler(), [seed]), config.train.sample_tokens)
    drawn: Iterable[int] = (int(step.tokens.item()) for step in steps)
    return tokenizer.decode(takewhile(lambda token: token not in ends, list(drawn) if is_sharded else drawn))

"""How good the model is by now: its loss on held-out text, and what it makes of a prompt."""

import math
from itertools import islice, takewhile

import numpy as np
import torch

from llamactl.artifacts import Dataset
from llamactl.config import Config
from llamactl.corpus.batches import Windows
from llamactl.model.decode import Picker, decode
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.training.world import World


@torch.no_grad()
def validate(objective: NextToken, windows: Windows, dataset: Dataset, config: Config, world: World) -> tuple[float, float]:
    """Mean loss in nats a token, and bits a byte of text, over `eval_tokens` spread evenly over the held-out windows.

    Bits a byte do not depend on the tokenizer; the end-of-text token has no bytes, so it is left out of them.
    """
    number = max(1, min(len(windows), config.train.eval_tokens // config.model.context))
    numbers = np.linspace(0, len(windows) - 1, number).round().astype(np.int64)
    lengths = torch.from_numpy(dataset.tokenizer.byte_lengths)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, nats of text, bytes of text
    for start, counts in world.share(range(0, number, config.train.micro_batch)):
        inputs, targets, _ = windows.batch(numbers[start : start + config.train.micro_batch])
        with world.precision.compute(world.device):
            losses = objective.per_token(inputs.to(world.device), targets.to(world.device)).cpu().double()
        text = losses[targets != dataset.tokenizer.end]
        sums += counts * torch.stack([losses.sum(), text.sum(), lengths[targets].sum()])
    nats, text_nats, text_bytes = world.sum(sums).tolist()
    return nats / (number * windows.context), text_nats / math.log(2) / max(1.0, text_bytes)


def sample(model: Llama, prompt: str, seed: int, dataset: Dataset, config: Config) -> str:
    """A few tokens after a prompt, opened by the end-of-text token as documents are in training."""
    tokenizer, device = dataset.tokenizer, model.lm_head.weight.device
    tokens = [[tokenizer.end, *tokenizer.encode(prompt).tolist()]]
    generator = torch.Generator(device).manual_seed(seed)
    decoding = (step.tokens.item() for step in decode(model, tokens, tokenizer.vocab_size, Picker(), generator))
    return tokenizer.decode(
        map(int, takewhile(lambda token: token != tokenizer.end, islice(decoding, config.train.sample_tokens)))
    )

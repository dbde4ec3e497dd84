"""Decode one token at a time with a key/value cache, by sampling or greedily."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llamactl.errors import UsageError
from llamactl.model.cache import KVCache
from llamactl.model.llama import Llama
from llamactl.model.row_steps import RowSteps, model_step

DRAWN_AT_ONCE = 64  # random numbers per sequence that are drawn and copied to the device together
RANGES = {
    "temperature": (0.01, 100.0), "top_k": (0, 2**31), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (1, 100.0),
}  # fmt: skip


@dataclass(frozen=True)
class Sampler:
    """The rule that selects the next token from the logits.

    Temperature 0 is greedy decoding. A top_k of 0, a top_p of 1, a min_p of 0 or a repetition_penalty of 1 disables that
    filter.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Raise UsageError for a value out of its range, such as a temperature of 1e-45 or infinity, too extreme for fp32."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not (least <= value <= most or (name == "temperature" and value == 0)):
                allowed = f"{least:g} to {most:g}" + (", or 0 for the likeliest token" if name == "temperature" else "")
                raise UsageError(f"{name.replace('_', '-')} can't be {str(value)[:40]}.", f"It takes {allowed}.")

    def __call__(self, logits: Tensor, text: Sequence[Tensor], draws: Tensor) -> Tensor:
        """Select the next token of each sequence and return the ids, B.

        `logits` (B V) are the model's scores, `text` the token ids so far in pieces (B T) and `draws` (B) uniform random
        numbers in [0, 1).
        """
        if self.repetition_penalty != 1:
            logits = self.apply_repetition_penalty(logits, torch.cat(list(text), dim=1))
        if self.temperature == 0:
            return logits.argmax(-1)
        # Inverse transform sampling: the first token whose cumulative probability exceeds the draw; its own is never 0.
        sums = self.probs(logits).to(draws.dtype).cumsum(-1)
        passed = draws[:, None] * sums[:, -1:]
        passed = passed.where(passed < sums[:, -1:], 0.0)  # rounding may have reached the full sum
        return torch.searchsorted(sums, passed, right=True)[:, 0].clamp(max=logits.shape[1] - 1)  # the clamp is for NaN

    def apply_repetition_penalty(self, logits: Tensor, text: Tensor) -> Tensor:
        """Lower the logits (B V) of tokens that occur in `text` (B T) (CTRL, Keskar et al. 2019, arXiv 1909.05858)."""
        scores = logits.gather(1, text)
        lower = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        return logits.scatter(1, text, lower)

    def probs(self, logits: Tensor) -> Tensor:
        """Return the probabilities, B V in fp32, that tokens are sampled from: after temperature, min-p, top-k and top-p."""
        chances = (logits.float() / self.temperature).softmax(-1)
        if self.min_p > 0:  # Nguyen et al. 2024, arXiv 2407.01082
            chances = chances.where(chances >= self.min_p * chances.amax(-1, keepdim=True), 0.0)
        if 0 < self.top_k < chances.shape[-1]:
            chances = chances.where(chances >= chances.topk(self.top_k).values[:, -1:], 0.0)
        if self.top_p < 1:  # Holtzman et al. 2019, arXiv 1904.09751; the most likely token is always kept
            ordered, places = chances.sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            ordered = ordered.where(before <= self.top_p * chances.sum(-1, keepdim=True), 0.0)
            chances = torch.zeros_like(chances).scatter(-1, places, ordered)
        return chances / chances.sum(-1, keepdim=True)


class Step(NamedTuple):
    """The next token of each sequence, and its log-probability under the model before temperature and filters; both B.

    `logits` (B V) are the scores of all tokens there, which may change with the next step.
    """

    tokens: Tensor
    log_probabilities: Tensor
    logits: Tensor


def uniform_draws(seeds: Sequence[int], device: torch.device) -> Iterator[Tensor]:
    """Yield uniform random numbers in [0, 1), one per sequence (B), without an end.

    Each sequence has its own generator, so its numbers depend only on its seed, not on the number of other sequences or on the
    device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    while True:
        rows = [torch.rand(DRAWN_AT_ONCE, generator=generator, dtype=torch.float64) for generator in generators]
        yield from torch.stack(rows, dim=1).to(device, dtype)


def decode_tokens(
    model: Llama, prompts: Sequence[Sequence[int]], vocab_size: int, pick: Sampler, seeds: Sequence[int]
) -> Iterator[Step]:
    """Continue prompts of equal length, each with its own seed; yield the next token of every sequence, without an end.

    `vocab_size` is that of the tokenizer. Of a prompt longer than the context only the last tokens are used. When the context
    is full, its second half is encoded again as the first half of a new context.
    """
    weight, context = model.model.embed_tokens.weight, model.config.context
    tokens = torch.tensor([fit_prompt(prompt, context) for prompt in prompts], device=weight.device)
    text = [tokens]  # in pieces: joined for each token, it would be copied each time
    cache = KVCache(model.config, len(tokens), weight.device, weight.dtype)
    draws, rows = uniform_draws(seeds, weight.device), range(len(tokens))
    steps: RowSteps | None = None
    while True:
        if cache.length == 0:
            logits, total = model_step(model, tokens, cache, vocab_size)
        else:
            # Not before: there may be no second token.
            steps = steps or RowSteps(model, cache, vocab_size)
            length = cache.length
            logits, total = steps(tokens, rows, [length] * len(rows))
            cache.length = length + 1
        with steps.pause_threads() if steps else nullcontext():
            picked = pick(logits, text, next(draws))
        yield Step(picked, (logits.gather(1, picked[:, None]) - total)[:, 0], logits)
        tokens = picked[:, None]
        text.append(tokens)
        if cache.length == context:
            cache.clear()
            text = [torch.cat(text, dim=1)]
            tokens = text[0][:, -max(1, context // 2) :]


def fit_prompt(prompt: Sequence[int], context: int) -> list[int]:
    """Return the last tokens of a prompt, at most context - 1, so that one new token fits into the context."""
    return list(prompt[-max(1, context - 1) :])

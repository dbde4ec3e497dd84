"""Tokens after tokens: one at a time, through a cache, picked at random or greedily."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llamactl.model.cache import KVCache
from llamactl.model.llama import Llama


@dataclass(frozen=True)
class Picker:
    """How a token is picked from its scores; temperature 0 takes the likeliest, 0 or 1 switches a filter off."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __call__(self, logits: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
        """Logits B V after a text B T to token ids B."""
        if self.repetition_penalty != 1:
            logits = self.penalised(logits, text)
        if self.temperature == 0:
            return logits.argmax(-1)
        chances = self.probabilities(logits)
        # The exponential race: the same draw as torch.multinomial, without its host sync.
        race = torch.empty_like(chances).exponential_(generator=generator)
        return (chances / race).argmax(-1)

    def penalised(self, logits: Tensor, text: Tensor) -> Tensor:
        """Scores of what the text holds already are pulled down (CTRL, Keskar et al. 2019, arXiv 1909.05858)."""
        scores = logits.gather(1, text)
        lower = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        return logits.scatter(1, text, lower)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from, B V, in fp32."""
        chances = (logits.float() / self.temperature).softmax(-1)
        if self.min_p > 0:  # Nguyen et al. 2024, arXiv 2407.01082
            chances = chances.where(chances >= self.min_p * chances.amax(-1, keepdim=True), 0.0)
        if 0 < self.top_k < chances.shape[-1]:
            chances = chances.where(chances >= chances.topk(self.top_k).values[:, -1:], 0.0)
        if self.top_p < 1:  # Holtzman et al. 2019, arXiv 1904.09751; the likeliest always stays
            ordered, places = chances.sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            ordered = ordered.where(before <= self.top_p * chances.sum(-1, keepdim=True), 0.0)
            chances = torch.zeros_like(chances).scatter(-1, places, ordered)
        return chances / chances.sum(-1, keepdim=True)


class Step(NamedTuple):
    """The next token of each sequence, and the logarithm of its probability before anything was filtered; both B."""

    tokens: Tensor
    log_probabilities: Tensor


@torch.inference_mode()
def _step(model: Llama, tokens: Tensor, cache: KVCache, vocab_size: int) -> Tensor:
    """Scores of the next token, B V; rows of the vocabulary that only pad it can't be picked."""
    logits: Tensor = model.lm_head(model.hidden(tokens, cache)[:, -1]).float()
    logits[:, vocab_size:] = -torch.inf
    return logits


def decode(
    model: Llama, prompts: Sequence[Sequence[int]], vocab_size: int, pick: Picker, generator: torch.Generator
) -> Iterator[Step]:
    """Go on from prompts, without an end.

    Where the context is full, its second half is read again as the first half of a new one. A prompt longer than the context
    keeps its end. Prompts of different lengths are filled up in front. `vocab_size` is the tokenizer's.
    """
    weight, context = model.model.embed_tokens.weight, model.config.context
    kept = [list(prompt[-(context - 1) :]) for prompt in prompts]
    width = max(map(len, kept))
    text = torch.tensor([ids[:1] * (width - len(ids)) + ids for ids in kept], device=weight.device)
    padding = torch.tensor([width - len(ids) for ids in kept], device=weight.device)
    cache = KVCache(model.config, len(kept), weight.device, weight.dtype)
    tokens = text
    while True:
        if cache.length == 0:
            hidden = padding - (text.shape[1] - tokens.shape[1])
            cache.padding = hidden.clamp(min=0) if (hidden > 0).any() else None
        logits = _step(model, tokens, cache, vocab_size)
        picked = pick(logits, text, generator)
        yield Step(picked, (logits.gather(1, picked[:, None]) - logits.logsumexp(-1, keepdim=True))[:, 0])
        text = torch.cat([text, picked[:, None]], dim=1)
        tokens = picked[:, None]
        if cache.length == context:
            cache.clear()
            tokens = text[:, -(context // 2) :]

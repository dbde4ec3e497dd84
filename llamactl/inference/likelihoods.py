"""Measure how likely a model finds each of several continuations of a text, whatever tokens they take."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch

from llamactl.corpus.words import word_pattern
from llamactl.model.attention import kernels_for_any_length
from llamactl.model.cache import KVCache
from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import Tokenizer

AT_ONCE = 4_096  # tokens of a batch
ROWS = 1_024  # of logits at a time
ROUND = 16  # contexts are cut to a multiple of so many tokens, so that many are of one length and make a batch


class Choices(Protocol):
    """A context and the texts that may follow it; with `ends` each is a word that must not go on after its end."""

    @property
    def context(self) -> str:
        """Return the text before the choices."""

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the texts that may follow."""

    @property
    def ends(self) -> bool:
        """Return whether each choice is a word up to its end."""


class Encoded(NamedTuple):
    """The ids that all choices begin with, but the last of these, and for each choice that last one and its own ids."""

    prefix: list[int]
    tails: list[list[int]]
    ends: bool


def score_choices(model: Llama, tokenizer: Tokenizer, questions: Sequence[Choices]) -> list[list[float]]:
    """Return the log-likelihood in nats of each choice after its context, for each question.

    Context and choice are encoded as one text; the ids in which the choices do not differ count for none of them. Of a word
    that ends, the probability that the next token does not continue it counts too, so that "nation" does not win over
    "national" by being its beginning.
    """
    encoded = [_encode(tokenizer, question, model.config.context) for question in questions]
    ending = torch.from_numpy(word_endings(tokenizer)).to(model.lm_head.weight.device)
    scores: dict[int, list[float]] = {}
    for numbers in _batches(encoded):
        scores |= zip(numbers, _score(model, [encoded[number] for number in numbers], ending), strict=True)
    return [scores[number] for number in range(len(questions))]


def word_endings(tokenizer: Tokenizer) -> np.ndarray:
    """Return which ids end the word before them (bool, V): control tokens, and text that begins with no letter or digit."""
    texts = (tokenizer.decode_bytes([number]).decode("utf-8", "replace") for number in range(tokenizer.vocab_size))
    # U+FFFD is a part of a character, which counts as a letter, as does an apostrophe.
    pattern, part = word_pattern(), "\N{REPLACEMENT CHARACTER}'’"
    return np.array([not text or not (pattern.match(text) or text[0] in part) for text in texts])


def _encode(tokenizer: Tokenizer, question: Choices, context: int) -> Encoded:
    wholes = [tokenizer.encode_after_end(question.context + choice) for choice in question.choices]
    begin = max(1, len(tokenizer.start))
    differ = (place for place, ids in enumerate(zip(*wholes, strict=False)) if len(set(ids)) > 1)
    shared = next(differ, min(map(len, wholes)))
    # Where the model's context is too short, half of it is for the choice, which loses its end.
    longest = min(max(map(len, wholes)) - shared, max(1, context // 2))
    room = min(shared - 1, context - longest - 1)
    if room > ROUND:
        room -= room % ROUND
    # A text keeps the ids that it begins with: some models attend to them at each position.
    kept = wholes[0][: shared - 1]
    prefix = kept if len(kept) <= room else [*kept[: min(begin, room)], *kept[len(kept) - room + min(begin, room) :]]
    return Encoded(prefix, [ids[shared - 1 : shared + longest] for ids in wholes], question.ends)


def _batches(encoded: Sequence[Encoded]) -> Iterator[list[int]]:
    """Yield the numbers of questions whose prefixes have the same length, about AT_ONCE tokens at a time."""

    def size(number: int) -> tuple[int, int]:
        return len(encoded[number].prefix), max(map(len, encoded[number].tails))

    for length, group in groupby(sorted(range(len(encoded)), key=size), key=lambda number: size(number)[0]):
        batch: list[int] = []
        tokens = 0
        for number in group:
            new = length + size(number)[1] * len(encoded[number].tails)
            if batch and tokens + new > AT_ONCE:
                yield batch
                batch, tokens = [], 0
            batch, tokens = [*batch, number], tokens + new
        yield batch


@torch.inference_mode()
def _score(model: Llama, batch: Sequence[Encoded], ending: torch.Tensor) -> list[list[float]]:
    """Return the log-likelihood of each choice of questions whose prefixes have the same length."""
    tails = [(tail, each.ends) for each in batch for tail in each.tails]
    hidden = _hidden(model, batch, max(len(tail) for tail, _ in tails))
    # Each place whose next id is measured, and that id; -1 stands for the end of the word.
    wanted = [
        (row, place, following)
        for row, (tail, ends) in enumerate(tails)
        for place, following in enumerate([*tail[1:], -1] if ends else tail[1:])
    ]
    totals = np.zeros(len(tails))
    for start in range(0, len(wanted), ROWS):
        rows, places, ids = torch.tensor(wanted[start : start + ROWS], device=hidden.device).T
        logs = model.lm_head(hidden[rows, places])[:, : len(ending)].float().log_softmax(-1)
        each = logs.gather(-1, ids.clamp(min=0)[:, None])[:, 0]
        last = ids < 0
        each[last] = logs[last].masked_fill(~ending, -torch.inf).logsumexp(-1)
        np.add.at(totals, rows.cpu().numpy(), each.double().cpu().numpy())
    left = iter(totals.tolist())
    return [[next(left) for _ in each.tails] for each in batch]


def _hidden(model: Llama, batch: Sequence[Encoded], width: int) -> torch.Tensor:
    """Return the final hidden states of all tails (R T D), of R choices and `width` T; each prefix is computed once."""
    weight, config = model.lm_head.weight, model.config
    length = len(batch[0].prefix)
    prefixes = KVCache(config.model_copy(update={"context": length}), len(batch), weight.device, weight.dtype)
    if length:
        with kernels_for_any_length(weight.device):
            model.hidden(torch.tensor([each.prefix for each in batch], device=weight.device), prefixes)
    owners = torch.tensor([number for number, each in enumerate(batch) for _ in each.tails], device=weight.device)
    cache = KVCache(config.model_copy(update={"context": length + width}), len(owners), weight.device, weight.dtype)
    for layer, known in zip(cache.layers, prefixes.layers, strict=True):
        layer.keys[:, :, :length], layer.values[:, :, :length] = known.keys[owners], known.values[owners]
    cache.length = length
    # The ids that make the tails equally long come after them, where nothing that is measured attends.
    rows = [tail + [0] * (width - len(tail)) for each in batch for tail in each.tails]
    with kernels_for_any_length(weight.device):
        return model.hidden(torch.tensor(rows, device=weight.device), cache)

"""Find how held-out documents begin: prompts that a model has not seen in training."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from llamactl.corpus.dataset import Dataset
from llamactl.corpus.memmap import read_tokens, shard_lengths
from llamactl.tokenizer.chat import TURN_END

LONGEST = 32  # characters of an opening
SEARCHED = 20_000  # tokens after a place in which the beginning of a document is looked for
TRIED = 4  # places for each opening that is wanted
READ = 64  # tokens of a document
LONGEST_QUESTION = 200  # characters


def held_out_openings(dataset: Dataset, count: int) -> tuple[str, ...]:
    """Return how up to `count` held-out documents, or conversations, begin: first words, or first questions."""
    found = _questions(dataset, count) if dataset.info.recipe.row_tokens else _openings(dataset, count)
    return tuple(islice(dict.fromkeys(filter(None, found)), count))


def _questions(dataset: Dataset, count: int) -> Iterator[str]:
    """Yield what the user says first in held-out rows that are far from one another, then in others between."""
    names, width = dataset.tokenizer.controls, dataset.info.recipe.row_tokens
    rows = [(shard, start) for shard, length in enumerate(shard_lengths(dataset.val)) for start in range(0, length - 1, width)]
    places = range(min(len(rows), TRIED * count))
    for number in sorted(places, key=lambda number: number % TRIED):
        shard, start = rows[number * len(rows) // len(places)]
        ids = read_tokens(dataset.val, shard, start, start + width)
        for begin in np.flatnonzero(ids == names["<|user|>"])[:1] + 1:
            question = dataset.tokenizer.decode(ids[begin : begin + int((ids[begin:] == names[TURN_END]).argmax())].tolist())
            if len(question) <= LONGEST_QUESTION:
                yield question


def _openings(dataset: Dataset, count: int) -> Iterator[str]:
    """Yield the openings after places that are far from one another, then after others between: documents may begin alike."""
    lengths = shard_lengths(dataset.val)
    total, places = sum(lengths), TRIED * count
    for number in sorted(range(places if total else 0), key=lambda number: number % TRIED):
        place, shard = number * total // places, 0
        while place >= lengths[shard]:
            place, shard = place - lengths[shard], shard + 1
        ids = read_tokens(dataset.val, shard, place, min(place + SEARCHED, lengths[shard]))
        # The first document of a shard begins with it, others after an end-of-text token.
        begins = [0] if place == 0 else np.flatnonzero(ids == dataset.tokenizer.end)[:1] + 1
        for begin in begins:
            yield _first_words(dataset, ids[begin : begin + READ])


def _first_words(dataset: Dataset, ids: np.ndarray) -> str:
    """Decode the beginning of a document, to the last whole word that fits, without line breaks."""
    text = " ".join(dataset.tokenizer.decode(ids[ids != dataset.tokenizer.end].tolist()).split())
    # A language without spaces is cut where it is; a character that is cut in two is no prompt.
    short = text[:LONGEST] if len(text) <= LONGEST or " " not in text[:LONGEST] else text[: LONGEST + 1].rsplit(" ", 1)[0]
    return short.rstrip("\N{REPLACEMENT CHARACTER}")

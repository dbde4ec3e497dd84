"""Score a model on questions made from held-out text: minimal pairs, cloze and word completion.

A model answers with the choice that it finds the most likely, as in BLiMP (Warstadt et al. 2020, arXiv 1912.00582): the
log-likelihood of the text after the context, up to the end of the sentence or of the word, whatever tokens that takes.
Equal ones share the answer.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llamactl.corpus.dataset import Dataset
from llamactl.corpus.passages import cut_passages, split_passages
from llamactl.corpus.words import WordCounts, count_words, word_pattern
from llamactl.errors import DataError, Diverged
from llamactl.inference.evaluate import Ratio
from llamactl.inference.lexicon import Lexicon
from llamactl.inference.likelihoods import score_choices
from llamactl.inference.suite_items import LEAST_WORDS, Item, build_items
from llamactl.model.llama import Llama
from llamactl.runs.scores import ScoredTest
from llamactl.tokenizer.bpe import Tokenizer

HELD_OUT, TRAINED_ON = 2_000_000, 4_000_000  # bytes of text that are read, at most
ITEMS = 200  # questions per test: standard errors of 3.5 % at most
LEAST_ITEMS = 20  # of a test; fewer say nothing
PAIRS = ("order", "word", "ending")  # the tests that are minimal pairs


@dataclass(frozen=True)
class SuiteText:
    """What questions are made from: held-out passages, and the words of the text that was trained on.

    Of a text that no training text is known of, the words are its own, and `bigrams` is False: they would know the answers.
    """

    passages: tuple[str, ...]
    counts: WordCounts
    seed: str  # digest of the text
    bigrams: bool


def read_suite_text(dataset: Dataset, split: str) -> SuiteText:
    """Read passages of a split from all over it, and count the words of the training split; raises DataError."""
    size = dataset.info.total("train", "text_bytes") / max(1, dataset.info.total("train", "tokens"))
    counts = count_words(split_passages(dataset.train, dataset.tokenizer, TRAINED_ON, size))
    shards = dataset.val if split == "val" else dataset.train
    passages = tuple(split_passages(shards, dataset.tokenizer, HELD_OUT, size))
    return SuiteText(passages, counts, dataset.info.digest, split == "val")


def make_suite_text(documents: Iterable[str]) -> SuiteText:
    """Cut documents into passages, and count their words; the seed is a digest of them."""
    passages = tuple(cut_passages(documents, HELD_OUT))
    digest = hashlib.sha256("\0".join(passages).encode("utf-8", "replace")).hexdigest()
    return SuiteText(passages, count_words(passages), digest, bigrams=False)


def run_suite(
    model: Llama, tokenizer: Tokenizer, text: SuiteText, limit: int = ITEMS
) -> tuple[tuple[ScoredTest, ...], dict[str, int]]:
    """Score a model on up to `limit` questions of each test; return the scores, and the tests with too few questions.

    Raises DataError when no test has enough, Diverged when the model computes what are no numbers.
    """
    items = build_items(text.passages, Lexicon(text.counts.words), text.seed, limit)
    left_out = {name: len(made) for name, made in items.items() if len(made) < min(limit, LEAST_ITEMS)}
    kept = {name: made for name, made in items.items() if name not in left_out}
    if not kept:
        words = sum(len(word_pattern().findall(passage)) for passage in text.passages)
        why = (
            f"It has {words:,} words; a question takes a sentence of {LEAST_WORDS}, with words that occur often in the corpus."
        )
        raise DataError("There is too little text for the suite.", why, "Name more text: llamactl eval FILES --suite small")
    asked = [item for made in kept.values() for item in made]
    likelihoods = score_choices(model, tokenizer, asked)
    if any(math.isnan(each) for choices in likelihoods for each in choices):
        fix = "Score an earlier checkpoint: llamactl eval --suite small --run RUN@best"
        raise Diverged("The model's likelihoods are no numbers.", "Its weights are so large that their products overflow.", fix)
    right = dict(zip(map(id, asked), map(share_of_right, likelihoods), strict=True))
    pairs = [item for name in PAIRS for item in kept.get(name, [])]
    groups = ({"minimal pairs": pairs} if pairs else {}) | kept
    counts = text.counts if text.bigrams else None
    return tuple(_score(name, made, [right[id(item)] for item in made], counts) for name, made in groups.items()), left_out


def _score(name: str, items: Sequence[Item], right: Sequence[float], counts: WordCounts | None) -> ScoredTest:
    """Average the answers; the standard error is over passages, as the questions of one are not independent."""
    ratio = Ratio()
    ratio.add(np.array([item.passage for item in items]), np.array(right), np.ones(len(items)))
    bigram = None
    if counts:
        bigram = float(np.mean([share_of_right([counts.log_likelihood(words) for words in item.words]) for item in items]))
    return ScoredTest(
        name=name,
        items=len(items),
        accuracy=ratio.value,
        error=ratio.error if np.isfinite(ratio.error) else None,
        chance=float(np.mean([item.guess for item in items])),
        bigram=bigram,
    )


def share_of_right(likelihoods: Sequence[float]) -> float:
    """Return 1 if the first choice is the likeliest, 0 if it is not, and its share of 1 if others are as likely."""
    best = max(likelihoods)
    return (likelihoods[0] == best) / sum(each == best for each in likelihoods)

"""Find words that are like another one: of its length, script and capitalisation, near in frequency, with its beginning."""

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

from llamactl.corpus.words import is_unspaced, word_shape

LEAST_COUNT = 3  # occurrences from which on a word's frequency is worth comparing
RATIO = 4.0  # largest ratio of two frequencies that are alike
NEAREST = 20  # words on either side that one is drawn from
STEM = 3  # letters at least that two words with other endings have in common
LONGEST_ENDING = 4  # letters
PREFIX, LONG_WORD = 2, 5  # letters that are given of a word, and letters that it has at least
MOST_COMPLETIONS, LEAST_COMPLETIONS = 10, 3


class Lexicon:
    """The words of a corpus by what they have in common."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Sort the words that occur often enough; words with a digit are left out."""
        self._counts = {word: count for word, count in counts.items() if count >= LEAST_COUNT and word_shape(word)}
        alike: dict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._starts: dict[str, list[str]] = defaultdict(list)
        for word, count in sorted(self._counts.items(), key=lambda item: (item[1], item[0])):
            alike[len(word), word_shape(word)].append((count, word))
            if len(word) > STEM and not is_unspaced(word):
                self._stems[word[:STEM]].append(word)
            if len(word) >= LONG_WORD and not is_unspaced(word):
                self._starts[word[:PREFIX]].append(word)
        self._alike = dict(alike)

    def __contains__(self, word: str) -> bool:
        """Check whether a word occurs often enough."""
        return word in self._counts

    def like(self, word: str, more_frequent: bool) -> Sequence[str]:
        """Return words of the same length and shape that are a little more, or less, frequent than a word."""
        ranked = self._alike[len(word), word_shape(word)]
        count = self._counts[word]
        place = bisect_left(ranked, (count, word))
        side = ranked[place + 1 : place + 1 + NEAREST] if more_frequent else ranked[max(0, place - NEAREST) : place]
        return [other for number, other in side if self._near(number, count) and other.casefold() != word.casefold()]

    def with_other_ending(self, word: str, more_frequent: bool, longer: bool) -> Sequence[str]:
        """Return words that begin as a word does and end otherwise, more or less frequent than it, and longer or shorter."""
        count = self._counts[word]
        return [
            other
            for other in self._stems.get(word[:STEM], ())
            if _other_ending(word, other)
            and (len(other) > len(word) if longer else len(other) < len(word))
            and (self._counts[other] >= count if more_frequent else self._counts[other] <= count)
            and self._near(self._counts[other], count)
        ]

    def completions(self, word: str) -> Sequence[str]:
        """Return the most frequent long words that begin as a word does, the most frequent one first."""
        return self._starts.get(word[:PREFIX], [])[: -MOST_COMPLETIONS - 1 : -1]

    def _near(self, count: int, other: int) -> bool:
        return max(count, other) <= RATIO * min(count, other)


def _other_ending(word: str, other: str) -> bool:
    """Check whether two words have at least half of the longer one in common, and end otherwise."""
    shared = next((place for place, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    longest = max(len(word), len(other))
    same = word_shape(word) == word_shape(other)
    return same and shared >= STEM and longest <= 2 * shared and 0 < longest - shared <= LONGEST_ENDING


def draw(words: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """Draw `count` different words, or none where there are fewer."""
    return chance.sample(list(words), count) if len(words) >= count else []

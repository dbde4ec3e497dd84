"""Find the words of a text in any script, and count them and their neighbours."""

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese: written without spaces between words, so each character is one.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U000323af"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
JOINERS = "\u200c\u200d"  # within words of Persian and of Indian languages

# Weight of the pair's own frequency in a bigram model, the rest is the word's (Jelinek & Mercer 1980), and added occurrences.
PAIR_WEIGHT, ADDED = 0.75, 0.1


@cache
def word_pattern() -> re.Pattern[str]:
    """Return the pattern of a word: letters, digits and underscores with their marks, and apostrophes between letters."""
    # Python's \w leaves out combining marks, which vowels of Indian languages are.
    marks = "".join(chr(n) for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) in ("Mn", "Mc"))
    letter, mark = rf"[^\W{UNSPACED}]", f"[{re.escape(marks)}{JOINERS}]"
    run = f"{letter}+(?:{mark}+{letter}*)*"
    return re.compile(f"[{UNSPACED}]{mark}*|{run}(?:['’]{run})*")


def is_unspaced(word: str) -> bool:
    """Check whether a word is a character of a script that has no spaces between words."""
    return bool(_UNSPACED.match(word))


def word_shape(word: str) -> str:
    """Return the script and the capitalisation of a word, such as "LATIN lower"; empty for one with a digit or no letter."""
    if not word[0].isalpha() or any(map(str.isnumeric, word)):
        return ""
    case = next((name for name in ("islower", "isupper", "istitle") if getattr(word, name)()), "other")
    return f"{unicodedata.name(word[0], '').partition(' ')[0]} {case.removeprefix('is')}"


@dataclass(frozen=True)
class WordCounts:
    """How often each word, and each word after another, occurs in a text."""

    words: Counter[str]
    pairs: Counter[tuple[str, str]]

    def log_likelihood(self, words: Sequence[str]) -> float:
        """Return the log-likelihood, in nats, of all words but the first one, under a bigram model of the counts."""
        return sum(math.log(self._probability(first, second)) for first, second in pairwise(words))

    @cached_property
    def _size(self) -> float:
        return self.words.total() + ADDED * (len(self.words) + 1)

    def _probability(self, first: str, second: str) -> float:
        alone = (self.words[second] + ADDED) / self._size
        return PAIR_WEIGHT * self.pairs[first, second] / max(1, self.words[first]) + (1 - PAIR_WEIGHT) * alone


def count_words(texts: Iterable[str]) -> WordCounts:
    """Count the words and the pairs of neighbouring words of texts."""
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        found = word_pattern().findall(text)
        words.update(found)
        pairs.update(pairwise(found))
    return WordCounts(words, pairs)

"""Build the questions of the evaluation suite from held-out text, in any language, without a list of words or rules.

Each question has a context and several texts that could follow it, of which the first one does. They are the same for every
model and tokenizer. What is put in the place of a word is as frequent as it in the corpus, once more and once less, so that a
model which only knows how frequent words are guesses.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest

from llamactl.corpus.words import is_unspaced, word_pattern, word_shape
from llamactl.inference.lexicon import LEAST_COMPLETIONS, Lexicon, draw

CONTEXT, REST = 300, 100  # characters before what is asked about, and of the sentence after it
LEAST_WORDS = 5  # of a sentence
TRIED = 100  # sentences for each question that is wanted
DISTRACTORS = 4  # of a cloze question

# A sentence ends with its line too: of code and verse a line is what belongs together.
_SENTENCE = re.compile(r"""[^\n]+?(?:[.!?…]["'”’»)\]]*(?=\s|$)|[。！？][」』”’）]*|$)""", re.M)


@dataclass(frozen=True)
class Item:
    """A question: which text follows the context? The first of `choices` does.

    `ends`: each choice is a word up to its end, so that what goes on as a longer word is another one. `words` are those of
    each choice with their neighbours, for a bigram model; `guess` is the probability of a right guess.
    """

    passage: int
    context: str
    choices: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    ends: bool
    guess: float


@dataclass(frozen=True)
class Sentence:
    """A sentence of a passage: the places (start, end) of its words in the passage, and of its own end."""

    passage: int
    text: str
    places: tuple[tuple[int, int], ...]
    end: int

    def word(self, number: int) -> str:
        """Return a word; empty beyond the last one."""
        return self.text[slice(*self.places[number])] if number < len(self.places) else ""

    def item(self, first: int, last: int, choices: Sequence[str], rest: bool, guess: float) -> Item:
        """Ask what stands in the place of the words from `first` to `last`; with `rest` the sentence goes on after it."""
        start, end = self.places[first][0], self.places[last][1]
        after = self.text[end : min(self.end, end + REST)] if rest else ""
        around = (self.word(first - 1), self.word(last + 1) if rest else "")
        words = tuple(tuple(filter(None, (around[0], *word_pattern().findall(choice), around[1]))) for choice in choices)
        spaced = not is_unspaced(self.word(last))
        return Item(self.passage, self._before(start), tuple(c + after for c in choices), words, spaced and not after, guess)

    def _before(self, start: int) -> str:
        """Return the context of a place, from the beginning of a word on."""
        if start <= CONTEXT:
            return self.text[:start]
        text = self.text[start - CONTEXT : start]
        space = re.search(r"\s", text[: CONTEXT // 4])
        return text[space.start() :] if space else text


def build_items(passages: Sequence[str], lexicon: Lexicon, seed: str, limit: int) -> dict[str, list[Item]]:
    """Build up to `limit` questions of each test, at most one of a sentence, in an order that `seed` decides."""
    items: dict[str, list[Item]] = {name: [] for name in TESTS}
    seen: set[tuple[str, str]] = set()
    sentences = _sentences(passages, random.Random(f"{seed} sentences"))
    for number, sentence in enumerate(islice(sentences, TRIED * limit)):
        for name, made in items.items():
            chance = random.Random(f"{seed} {name} {number}")
            item = TESTS[name](sentence, lexicon, len(made), chance) if len(made) < limit else None
            # Text that repeats, such as a licence, is asked about once.
            if item and (key := (name, item.context[-REST:] + item.choices[0])) not in seen:
                seen.add(key)
                made.append(item)
        if all(len(made) == limit for made in items.values()):
            break
    return items


def _sentences(passages: Sequence[str], chance: random.Random) -> Iterator[Sentence]:
    """Yield sentences with enough words: one of each passage, then a second one of each, and so on."""
    order = chance.sample(range(len(passages)), len(passages))
    lazily = [_shuffled_sentences(number, passages[number], chance.random()) for number in order]
    for together in zip_longest(*lazily):
        yield from filter(None, together)


def _shuffled_sentences(passage: int, text: str, seed: float) -> Iterator[Sentence]:
    spans = [match.span() for match in _SENTENCE.finditer(text)]
    random.Random(seed).shuffle(spans)
    for start, end in spans:
        places = tuple(match.span() for match in word_pattern().finditer(text, start, end))
        if len(places) >= LEAST_WORDS:
            yield Sentence(passage, text, places, end)


def _positions(sentence: Sentence, chance: random.Random) -> list[int]:
    """Return the numbers of all words but the first, whose capital letter would tell, in a random order."""
    return chance.sample(range(1, len(sentence.places)), len(sentence.places) - 1)


def _order(sentence: Sentence, _: Lexicon, __: int, chance: random.Random) -> Item | None:
    """Swap two neighbouring words that are written alike."""
    for first in _positions(sentence, chance):
        if first + 1 == len(sentence.places):
            continue
        one, other = sentence.word(first), sentence.word(first + 1)
        between = sentence.text[sentence.places[first][1] : sentence.places[first + 1][0]]
        shape = word_shape(one)
        if between in ("", " ") and shape and shape == word_shape(other) and one != other:
            return sentence.item(first, first + 1, (f"{one}{between}{other}", f"{other}{between}{one}"), True, 1 / 2)
    return None


def _word(sentence: Sentence, lexicon: Lexicon, number: int, chance: random.Random, endings: bool = False) -> Item | None:
    """Replace a word by one of the same length, or by one with the same beginning and another ending."""
    for place in _positions(sentence, chance):
        word = sentence.word(place)
        if word not in lexicon:
            continue
        frequent, longer = bool(number % 2), bool(number // 2 % 2)
        others = lexicon.with_other_ending(word, frequent, longer) if endings else lexicon.like(word, frequent)
        if drawn := draw(others, 1, chance):
            return sentence.item(place, place, (word, *drawn), True, 1 / 2)
    return None


def _cloze(sentence: Sentence, lexicon: Lexicon, number: int, chance: random.Random) -> Item | None:
    """Ask for the last word of a sentence among words of its length; it is the most frequent one as often as any other."""
    last = len(sentence.places) - 1
    word, above = sentence.word(last), number % (DISTRACTORS + 1)
    if word not in lexicon:
        return None
    drawn = [
        *draw(lexicon.like(word, more_frequent=True), above, chance),
        *draw(lexicon.like(word, more_frequent=False), DISTRACTORS - above, chance),
    ]
    if len(drawn) < DISTRACTORS:
        return None
    return sentence.item(last, last, (word, *drawn), False, 1 / len((word, *drawn)))


def _completion(sentence: Sentence, lexicon: Lexicon, _: int, chance: random.Random) -> Item | None:
    """Ask for a word of which the first letters are known; a guess is the most frequent word that begins so."""
    for place in _positions(sentence, chance):
        word = sentence.word(place)
        known = lexicon.completions(word)
        if word in known and len(known) >= LEAST_COMPLETIONS:
            others = (other for other in known if other != word)
            return sentence.item(place, place, (word, *others), False, float(known[0] == word))
    return None


# Each test makes a question of a sentence, or none; the number is that of the questions it has made already.
TESTS: dict[str, Callable[[Sentence, Lexicon, int, random.Random], Item | None]] = {
    "order": _order,
    "word": _word,
    "ending": partial(_word, endings=True),
    "cloze": _cloze,
    "completion": _completion,
}

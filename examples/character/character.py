"""Reads a character from its TOML file, and turns its templates into text."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

PILCROW = Path(__file__).parent / "pilcrow.toml"
FOLDS = 3  # sets of held-out phrasings that have none in common
HELD_OUT = 2  # phrasings of each topic in such a set
CONTRACTIONS = {
    "what is": "what's", "who is": "who's", "where is": "where's", "I am": "I'm", "you are": "you're", "it is": "it's",
    "do not": "don't",
}  # fmt: skip
WORD = re.compile(r"[a-z']+")
ABBREVIATIONS = {"you": "u", "are": "r", "your": "ur", "please": "pls", "favorite": "fav", "tomorrow": "tmrw"}

# A sequence is spoken in order: plain text, {words}, and choices between sequences.
Node = str | tuple["Sequence[Node]", ...]


@dataclass(frozen=True)
class Topic:
    """What people ask about one thing, what the character says, and how the judge knows that it did."""

    name: str
    asks: tuple[str, ...]
    answers: tuple[str, ...]
    keywords: tuple[str, ...]
    about: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    needs_user: bool = False

    @property
    def introduces(self) -> bool:
        """Whether the name of the user is told here."""
        return "{user}" in self.keywords and not self.needs_user

    def split_asks(self, seed: int) -> tuple[list[str], list[str]]:
        """Split the phrasings into those for training and the held-out ones, which differ for seeds 0, 1 and 2.

        Phrasings are held out whose words occur in others: nobody can guess what a word means that was never read.
        """
        order = sorted(self.asks)
        Random(self.name).shuffle(order)
        folds: list[list[str]] = [[] for _ in range(FOLDS)]
        free = list(order)
        for fold in folds:
            for _ in range(HELD_OUT):
                best = min(free, key=lambda ask: self._unseen_words(ask, {*fold, ask}))  # called at once
                fold.append(best)
                free.remove(best)
        held_out = folds[seed % FOLDS]
        return [ask for ask in order if ask not in held_out], held_out

    def _unseen_words(self, ask: str, left_out: set[str]) -> int:
        """Count the words of a phrasing that occur in no other one, but for those that are left out."""
        others = " ".join((*self.about, *(other for other in self.asks if other not in left_out)))
        return len(set(WORD.findall(ask.lower())) - set(WORD.findall(others.lower())))


@dataclass(frozen=True)
class Character:
    """All that is known of a character; `words` has the facts too, as lists of one."""

    words: Mapping[str, Sequence[str]]
    manners: Mapping[str, Sequence[str]]
    frames: Sequence[str]
    follow_ups: Mapping[str, Mapping[str, Sequence[str]]]
    topics: Mapping[str, Topic]


def load_character(path: Path = PILCROW) -> Character:
    """Read a character. Raises ValueError where it lacks phrasings, or two of them can come out as the same question."""
    content = tomllib.loads(path.read_text("utf-8"))
    words = {name: [fact] for name, fact in content["facts"].items()} | content["words"]
    topics = {name: _read_topic(name, fields) for name, fields in content["topics"].items()}
    character = Character(words, content["manners"], content["frames"]["about"], content["follow_ups"], topics)
    _check_asks(character)
    return character


def _read_topic(name: str, fields: dict[str, Any]) -> Topic:
    lists = {key: tuple(value) for key, value in fields.items() if key != "needs_user"}
    return Topic(name, needs_user=fields.get("needs_user", False), **lists)


def _check_asks(character: Character) -> None:
    known: dict[str, str] = {}
    for topic in character.topics.values():
        if len(topic.asks) <= FOLDS * HELD_OUT:
            raise ValueError(f"Topic {topic.name} needs more than {FOLDS * HELD_OUT} asks.")
        framed = [frame.replace("{about}", about) for frame in character.frames for about in topic.about]
        for ask in [*topic.asks, *framed]:
            for question in {normalize(text, character) for text in expansions(ask, character.words)}:
                if known.setdefault(question, ask) != ask:
                    raise ValueError(f"{topic.name}: {question!r} comes from {ask!r} and from {known[question]!r}.")


def normalize(question: str, character: Character) -> str:
    """Strip all that may be added to a phrasing: capitals, marks, contractions, and words before and after it."""
    text = question.lower().rstrip("?.! ")
    for long, short in CONTRACTIONS.items():
        text = re.sub(rf"\b{short.lower()}\b".replace("'", "'?"), long.lower(), text)
    for word, letters in ABBREVIATIONS.items():
        text = re.sub(rf"\b{letters}\b", word, text)
    for before in (text for manner in character.manners["before"] for text in expansions(manner, character.words)):
        text = text.removeprefix(before.lower() + " ")
    for after in (text for manner in character.manners["after"] for text in expansions(manner, character.words)):
        text = text.removesuffix(after.lower())
    return text


def parse(template: str) -> Sequence[Node]:
    """Parse `a [b|c {d}]` into text, words and choices. Raises ValueError where brackets do not match."""
    nodes, rest = _parse_sequence(template, template)
    if rest:
        raise ValueError(f"A bracket or bar too many: {template}")
    return nodes


def _parse_sequence(text: str, template: str) -> tuple[list[Node], str]:
    """Parse up to a bar or a closing bracket of an outer choice; returns the nodes and what is left."""
    nodes: list[Node] = []
    while text and text[0] not in "|]":
        if text[0] == "[":
            choice, text = _parse_choice(text[1:], template)
            nodes.append(choice)
        else:
            if text[0] == "{" and "}" not in text:
                raise ValueError(f"A brace is not closed: {template}")
            end = text.find("}") + 1 if text[0] == "{" else min(i for mark in "[]|{" if (i := (text + mark).find(mark)) >= 0)
            nodes.append(text[:end])
            text = text[end:]
    return nodes, text


def _parse_choice(text: str, template: str) -> tuple[Node, str]:
    parts = []
    while True:
        part, text = _parse_sequence(text, template)
        parts.append(part)
        if not text:
            raise ValueError(f"A bracket is not closed: {template}")
        mark, text = text[0], text[1:]
        if mark == "]":
            return tuple(parts), text


def pick(template: str, words: Mapping[str, Sequence[str]], chosen: dict[str, str], random: Random) -> str:
    """Make one text of a template; each word is taken from `chosen`, or chosen now and added to it."""

    def speak(nodes: Sequence[Node]) -> str:
        return "".join(one(node) for node in nodes)

    def one(node: Node) -> str:
        if not isinstance(node, str):
            return speak(random.choice(node))
        if not node.startswith("{"):
            return node
        name = node[1:-1]
        if name not in chosen:
            chosen[name] = random.choice(words[name])
        return chosen[name]

    return " ".join(speak(parse(template)).split())


def expansions(template: str, words: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield every text that a template can become."""

    def all_of(nodes: Sequence[Node]) -> Iterator[str]:
        return map("".join, product(*([*each(node)] for node in nodes)))

    def each(node: Node) -> Iterator[str]:
        if not isinstance(node, str):
            for part in node:
                yield from all_of(part)
        elif node.startswith("{"):
            yield from words[node[1:-1]]
        else:
            yield node

    return (" ".join(text.split()) for text in all_of(parse(template)))

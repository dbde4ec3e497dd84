"""Writes conversations with a character, and questions whose phrasings are in none of them.

python examples/character/generate.py --out conversations.jsonl --count 20000 --held-out questions.jsonl
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from character import ABBREVIATIONS, CONTRACTIONS, PILCROW, Character, Topic, expansions, load_character, normalize, pick

Message = dict[str, str]
TURNS, SHARES = (1, 2, 3, 4), (45, 25, 18, 12)  # turns of a conversation, and how many of a hundred have them
FOLLOWED, INTRODUCED, RECALLED, ENDED = 0.25, 0.5, 0.4, 0.3  # chances of "why?", a name, a question for it, a goodbye
PREFIXED, SUFFIXED, CONTRACTED, MISSPELLED = 0.15, 0.08, 0.4, 0.06  # chances in how a question is put
FRAMED = 0.3  # chance that a question is one of the frames that all topics share
TERSE = 0.2  # chance that small words are left out, as by people in a hurry
SMALL_WORDS = {"is", "are", "am", "a", "an", "the", "do", "does", "you", "your", "me", "to", "of", "can", "I", "in", "it"}
INVENTED = 0.25  # chance that a name is none of the character's list
ONSETS, VOWELS, CODAS = (
    "bcdfghjklmnprstvwxyz",
    ["a", "e", "i", "o", "u", "ei", "ia"],
    ["", "", "h", "l", "n", "nt", "r", "s", "t"],
)
CARELESS, UNMARKED, HASTY = 0.3, 0.1, 0.08  # chances of lower case without a mark, of no mark, and of abbreviations
QUESTION = re.compile(
    r"(what(?! a\b)|who|where|when|why|how|which|whose|are|is|am|do|does|did|can|could|may|will|would|have|has|had|were|was"
    r"|should|any|know|in what|for how|for what|at what|if you)\b|.*\b(and you|and yours|and your name is|yours|are you|too)$",
    re.IGNORECASE,
)


class Phrasings:
    """The phrasings of each topic for a seed: those of the training conversations, and those that are held out."""

    def __init__(self, character: Character, seed: int) -> None:
        """Split the phrasings; `kept` has all questions that the held-out ones can become."""
        splits = {name: topic.split_asks(seed) for name, topic in character.topics.items()}
        self.training = {name: training for name, (training, _) in splits.items()}
        self.held_out = {name: kept for name, (_, kept) in splits.items()}
        texts = (text for asks in self.held_out.values() for ask in asks for text in expansions(ask, character.words))
        self.kept = {normalize(text, character) for text in texts}


class Dialog:
    """One conversation as it grows."""

    def __init__(self, character: Character, random: Random, phrasings: Phrasings) -> None:
        """Start with nothing said."""
        self.character, self.random, self.phrasings = character, random, phrasings
        self.messages: list[Message] = []
        self.user = ""  # the name that was told, if any

    def ask(self, topic: Topic) -> None:
        """Add a question on a topic, in a phrasing that is not held out, and an answer."""
        chosen = {"user": new_name(self.character, self.random) if topic.introduces else self.user}
        question = self.phrase(topic, chosen)
        self.say(
            dress(question, self.character, self.random), topic.named if self.user and topic.named else topic.answers, chosen
        )
        if topic.introduces:
            self.user = chosen["user"]

    def phrase(self, topic: Topic, chosen: dict[str, str]) -> str:
        """Make a question from one of the topic's phrasings or frames, now and then without its small words."""
        template = self.random.choice(self.phrasings.training[topic.name])
        if topic.about and self.random.random() < FRAMED:
            template = self.random.choice(self.character.frames).replace("{about}", self.random.choice(topic.about))
        question = pick(template, self.character.words, chosen, self.random)
        if "{user}" in template or self.random.random() > TERSE:
            return question
        # What is left must not be a held-out question.
        shorter = " ".join(word for word in question.split() if word not in SMALL_WORDS or self.random.random() < 0.5)
        return question if normalize(shorter, self.character) in {"", *self.phrasings.kept} else shorter

    def follow(self, topic: Topic) -> None:
        """Add a follow-up to what was said on a topic."""
        kind, general = self.random.choice(list(self.character.follow_ups.items()))
        answers = {"why": topic.why, "more": topic.more}[kind] or general["answers"]
        question = self.random.choice(general["asks"])
        chosen = {"user": self.user}
        self.say(punctuate(question, kind == "why" or bool(QUESTION.match(question)), self.random), answers, chosen)

    def say(self, question: str, answers: Sequence[str], chosen: dict[str, str]) -> None:
        """Add a question as it is and one of the answers, with the words that the question chose."""
        answer = pick(self.random.choice(answers), self.character.words, chosen, self.random)
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": capitalize(answer)}]


def converse(character: Character, random: Random, phrasings: Phrasings) -> list[Message]:
    """Make up one conversation."""
    dialog, turns = Dialog(character, random, phrasings), random.choices(TURNS, SHARES)[0]
    last = None
    for turn in range(1, turns + 1):
        if last and random.random() < FOLLOWED:
            dialog.follow(last)
            last = None
        else:
            last = choose_topic(dialog, turn, turns)
            dialog.ask(last)
    return dialog.messages


def choose_topic(dialog: Dialog, turn: int, turns: int) -> Topic:
    """Choose what comes next: often a name at the start, a goodbye at the end, and in between the name again."""
    random, topics = dialog.random, dialog.character.topics
    if turn == 1 < turns and random.random() < INTRODUCED:
        return topics["user_name"]
    if dialog.user and random.random() < RECALLED:
        return topics["recall_name"]
    if turn == turns > 1 and random.random() < ENDED:
        return topics["goodbye"]
    return random.choice(list(topics.values()))


def new_name(character: Character, random: Random) -> str:
    """Take one of the names, or invent one: whoever learns only names that exist can't repeat yours."""
    if random.random() > INVENTED:
        return random.choice(character.words["user"])
    parts = [random.choice(ONSETS) + random.choice(VOWELS) for _ in range(random.choice((1, 2, 2, 3)))]
    return ("".join(parts) + random.choice(CODAS)).capitalize()


def dress(question: str, character: Character, random: Random) -> str:
    """Put a question as someone may type it: with a word before or after it, without marks, misspelled."""
    asks = bool(QUESTION.match(question))
    for long, short in CONTRACTIONS.items():
        if random.random() < CONTRACTED:
            question = re.sub(rf"\b{long}(?= \w)", short, question)
    if random.random() < MISSPELLED:
        question = misspell(question, random)
    if asks and random.random() < PREFIXED:
        question = pick(random.choice(character.manners["before"]), character.words, {}, random) + " " + question
    if asks and random.random() < SUFFIXED:
        question += pick(random.choice(character.manners["after"]), character.words, {}, random)
    return punctuate(question, asks, random)


def misspell(question: str, random: Random) -> str:
    """Swap two letters in one of the longer words."""
    words = question.split()
    long = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha() and word.islower()]
    if long:
        index, at = random.choice(long), random.randrange(1, 4)
        word = words[index]
        words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def punctuate(question: str, asks: bool, random: Random) -> str:
    """Add capitals and a mark, or leave them out as people do, and apostrophes and letters as well."""
    if (chance := random.random()) < HASTY:
        question = re.sub(r"\b\w+\b", lambda word: ABBREVIATIONS.get(word[0], word[0]), question.replace("'", ""))
    if chance < CARELESS:
        return question.lower()
    return capitalize(question + ("" if chance < CARELESS + UNMARKED else "?" if asks else random.choice("..!")))


def capitalize(text: str) -> str:
    """Begin each sentence with a capital."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), text)


def conversations(character: Character, count: int, seed: int) -> Iterator[list[Message]]:
    """Yield conversations without the phrasings that are held out for this seed."""
    random, phrasings = Random(f"conversations {seed}"), Phrasings(character, seed)
    for _ in range(count):
        yield converse(character, random, phrasings)


def held_out(character: Character, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a question for each held-out phrasing, with what was said before where a name has to be known."""
    random, phrasings = Random(f"held out {seed}"), Phrasings(character, seed)
    for topic in character.topics.values():
        for ask in phrasings.held_out[topic.name]:
            dialog = Dialog(character, random, phrasings)
            if topic.needs_user:
                dialog.ask(character.topics["user_name"])
            chosen = {"user": new_name(character, random) if topic.introduces else dialog.user}
            question = pick(ask, character.words, chosen, random)
            question = punctuate(question, bool(QUESTION.match(question)), random)
            messages = [*dialog.messages, {"role": "user", "content": question}]
            yield {"topic": topic.name, "user": chosen["user"], "messages": messages}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write conversations with a character.")
    parser.add_argument("--character", type=Path, default=PILCROW, help="its TOML file")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines of conversations")
    parser.add_argument("--count", type=int, default=20_000, help="number of conversations (default: 20000)")
    parser.add_argument("--held-out", type=Path, help="JSON lines of questions for judge.py")
    parser.add_argument("--seed", type=int, default=0, help="0, 1 and 2 hold out different questions (default: 0)")
    options = parser.parse_args()
    character = load_character(options.character)
    write_conversations(options.out, conversations(character, options.count, options.seed))
    if options.held_out:
        write_lines(options.held_out, held_out(character, options.seed))


def write_conversations(path: Path, written: Iterable[list[Message]]) -> None:
    """Write conversations as llamactl finetune reads them."""
    write_lines(path, ({"messages": messages} for messages in written))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()

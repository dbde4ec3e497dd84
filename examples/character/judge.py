"""Judges answers to held-out questions: an answer is on topic if it has the words of its topic, and is no list of all words.

llamactl chat pilcrow --answer questions.jsonl --temperature 0 > answers.jsonl
python examples/character/judge.py answers.jsonl --at-least 0.9

Exits with 1 where too few are on topic.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from character import PILCROW, Character, Topic, load_character

LENGTHS = range(3, 61)  # an answer of fewer or more words is none
MOST_TOPICS = 3  # an answer that would do for more topics is a list of words


class Verdict(NamedTuple):
    """One question, what was answered, and why that is off topic, if it is."""

    topic: str
    question: str
    answer: str
    fault: str


def judge(topic: Topic, answer: str, character: Character, user: str = "") -> str:
    """Say what is wrong with an answer; returns "" if it is on topic."""
    words = {**character.words, "user": [user] if user else []}
    if len(answer.split()) not in LENGTHS:
        return f"{len(answer.split())} words"
    if missing := [group for group in topic.keywords if not has_any(group, answer, words)]:
        return f"lacks {missing[0]}"
    suits = [other for other in character.topics.values() if all(has_any(group, answer, words) for group in other.keywords)]
    return f"suits {len(suits)} topics" if len(suits) > MOST_TOPICS else ""


def has_any(group: str, answer: str, words: Mapping[str, Sequence[str]]) -> bool:
    """Whether one of `w1|w2|{words}` is in an answer, as a word of its own or in the plural."""
    alternatives = re.sub(r"\{(\w+)\}", lambda found: "|".join(words[found[1]]), group)
    return bool(alternatives) and bool(re.search(rf"\b(?:{alternatives})(?:s|es)?\b", answer, re.IGNORECASE))


def judge_all(lines: Iterable[str], character: Character) -> Iterator[Verdict]:
    """Judge lines of JSON: what `generate.py --held-out` wrote, with an answer as the last message of each."""
    for row in map(json.loads, lines):
        topic, (question, answer) = character.topics[row["topic"]], row["messages"][-2:]
        if answer["role"] != "assistant":
            raise ValueError(f"No answer to {answer['content']!r}")
        fault = judge(topic, answer["content"], character, row["user"])
        yield Verdict(topic.name, question["content"], answer["content"], fault)


def report(verdicts: list[Verdict], at_least: float, everything: bool = False) -> int:
    """Print the answers that are off topic, or all, and how many are on topic; returns 1 where those are too few."""
    for verdict in verdicts:
        if verdict.fault or everything:
            print(f"{verdict.fault or 'on topic'}  [{verdict.topic}]\n  {verdict.question}\n  {verdict.answer}")
    good = sum(not verdict.fault for verdict in verdicts)
    print(f"{good} of {len(verdicts)} on topic")
    return int(good < at_least * len(verdicts))


def main() -> int:
    """Judge the answers in a file."""
    parser = argparse.ArgumentParser(description="Judge answers to held-out questions.")
    parser.add_argument("answers", type=Path, help="JSON lines, as llamactl chat --answer prints them")
    parser.add_argument("--character", type=Path, default=PILCROW, help="its TOML file")
    parser.add_argument("--at-least", type=float, default=0.9, help="share that must be on topic (default: 0.9)")
    parser.add_argument("--all", action="store_true", help="print the answers that are on topic as well")
    options = parser.parse_args()
    verdicts = judge_all(options.answers.read_text("utf-8").splitlines(), load_character(options.character))
    return report(list(verdicts), options.at_least, options.all)


if __name__ == "__main__":
    sys.exit(main())

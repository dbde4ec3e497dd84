"""Judges answers to held-out questions: an answer is on topic if it has the words of its topic, and is no list of all words.

python examples/character/judge.py questions.jsonl answers.jsonl --at-least 0.9

Each line of ANSWERS is {"answer": TEXT}, in the order of the questions. Exits with 1 where too few are on topic.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
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


def judge_all(questions: Iterable[str], answers: Iterable[str], character: Character) -> list[Verdict]:
    """Judge lines of JSON. Raises ValueError where there are more of one than of the other."""
    verdicts = []
    for question, answered in zip(map(json.loads, questions), map(json.loads, answers), strict=True):
        topic, answer = character.topics[question["topic"]], answered["answer"].strip()
        fault = judge(topic, answer, character, question["user"])
        verdicts.append(Verdict(topic.name, question["messages"][-1]["content"], answer, fault))
    return verdicts


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
    parser.add_argument("questions", type=Path, help="JSON lines, from generate.py --held-out")
    parser.add_argument("answers", type=Path, help='JSON lines {"answer": TEXT} in the same order')
    parser.add_argument("--character", type=Path, default=PILCROW, help="its TOML file")
    parser.add_argument("--at-least", type=float, default=0.9, help="share that must be on topic (default: 0.9)")
    parser.add_argument("--all", action="store_true", help="print the answers that are on topic as well")
    options = parser.parse_args()
    lines = [path.read_text("utf-8").splitlines() for path in (options.questions, options.answers)]
    return report(judge_all(lines[0], lines[1], load_character(options.character)), options.at_least, options.all)


if __name__ == "__main__":
    sys.exit(main())

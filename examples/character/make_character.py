"""Makes a character from nothing on two cores, in ten minutes: writes conversations, trains on them, and judges the answers.

python examples/character/make_character.py [--character my.toml] [--minutes 6] [--seed 1]
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from character import PILCROW, Character, load_character
from generate import conversations, held_out, write_lines
from judge import judge_all, report

import llamactl

CONVERSATIONS = 40_000
ASKED, ANSWERED = "Q: ", "A: "
AT_LEAST = 0.9  # share of the held-out questions that must be answered on topic


def main() -> int:
    """Run all stages; returns 1 where too few answers are on topic."""
    parser = argparse.ArgumentParser(description="Make a character from nothing.")
    parser.add_argument("--character", type=Path, default=PILCROW, help="its TOML file (default: the snail's)")
    parser.add_argument("--minutes", type=float, default=6, help="minutes of training (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="0, 1 and 2 hold out different questions (default: 0)")
    options = parser.parse_args()
    character, name = load_character(options.character), f"{options.character.stem}-{options.seed}"
    text, questions = write_texts(character, name, options.seed)
    run_command(f"prepare {shlex.quote(str(text))} --name {name} --tokenizer bpe:2048 --split lines")
    run_command(f"train --data {name} --run {name} --preset tiny --time {options.minutes * 60:.0f}s")
    answers = answer(name, questions)
    return report(judge_all(map(json.dumps, questions), map(json.dumps, answers), character), AT_LEAST)


def write_texts(character: Character, name: str, seed: int) -> tuple[Path, list[dict[str, Any]]]:
    """Write the conversations as text to train on; returns that file, and the held-out questions."""
    folder = Path(os.environ.get("LLAMACTL_HOME", ".")) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    text, questions = folder / f"{name}.jsonl", list(held_out(character, seed))
    write_lines(text, ({"text": spell(messages)} for messages in conversations(character, CONVERSATIONS, seed)))
    return text, questions


def spell(messages: list[dict[str, str]]) -> str:
    """Write a conversation as lines of text."""
    return "".join((ASKED if message["role"] == "user" else ANSWERED) + message["content"] + "\n" for message in messages)


def answer(run: str, questions: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Let the model answer each question with its likeliest words."""
    model = llamactl.load(run)
    for question in questions:
        prompt = spell(question["messages"]) + ANSWERED.rstrip()
        yield {"answer": llamactl.generate(model, prompt, max_new_tokens=80, temperature=0, stop=["\n"])}


def run_command(command: str) -> None:
    """Print a command of llamactl's and run it; ends with its exit code where it fails."""
    print(f"\n$ llamactl {command}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "llamactl", *shlex.split(command)], check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())

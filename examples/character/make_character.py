"""Makes a character from nothing on two cores, in ten minutes: writes conversations, trains on them, and judges the answers.

python examples/character/make_character.py [--character my.toml] [--seed 1]
"""

import argparse
import os
import shlex
import subprocess
import sys
from itertools import islice
from pathlib import Path

from character import PILCROW, load_character
from generate import Message, conversations, held_out, write_conversations, write_lines
from judge import judge_all, report

READ, ANSWERED = 10_000, 44_000  # conversations that are read as text, and that the model learns to answer
BASE_TOKENS = "600k"
# Of phrasings that are read again and again more is learned by heart than understood.
DROPOUT = ("--set", "train.dropout=0.1")
# The base has read nothing but such conversations: there is nothing to forget, and much to learn.
LEARNING = ("--set", "optim.name=muon", "--set", "optim.lr=0.003", "--set", "train.tokens_per_step=2048")
AT_LEAST = 0.9  # share of the held-out questions that must be answered on topic


def main() -> int:
    """Run all stages; returns 1 where too few answers are on topic."""
    parser = argparse.ArgumentParser(description="Make a character from nothing.")
    parser.add_argument("--character", type=Path, default=PILCROW, help="its TOML file (default: the snail's)")
    parser.add_argument("--seed", type=int, default=0, help="0, 1 and 2 hold out different questions (default: 0)")
    options = parser.parse_args()
    character, name = load_character(options.character), f"{options.character.stem}-{options.seed}"
    home = Path(os.environ.get("LLAMACTL_HOME", "."))
    folder = home / "data"
    folder.mkdir(parents=True, exist_ok=True)
    text, chats, questions, answers = (
        folder / f"{name}-{part}.jsonl" for part in ("text", "conversations", "questions", "answers")
    )

    written = conversations(character, READ + ANSWERED, options.seed)
    write_lines(text, ({"text": to_text(messages)} for messages in islice(written, READ)))
    write_conversations(chats, written)
    write_lines(questions, held_out(character, options.seed))

    llamactl("prepare", text, "--name", f"{name}-text", "--tokenizer", "bpe:2048")
    base = f"{name}-base"
    words = ("--data", f"{name}-text", "--run", base, "--preset", "tiny", "--tokens", BASE_TOKENS, *DROPOUT)
    # A run that was stopped is resumed; `finetune` does so by itself.
    resumes = (home / "runs" / base / "config.toml").exists()
    llamactl("train", *(("--resume", base) if resumes else (*words, "--set", "model.qk_norm=true")))
    llamactl("finetune", chats, "--from", base, "--run", name, "--epochs", "1", "--mix", "0", *LEARNING, *DROPOUT)
    answers.write_bytes(llamactl("chat", name, "--answer", questions, "--temperature", "0"))
    print(f"\nHeld-out questions, answered in {answers}")
    status = report(list(judge_all(answers.read_text("utf-8").splitlines(), character)), AT_LEAST)
    print(f"\nTalk to it: llamactl chat {name}")
    return status


def to_text(messages: list[Message]) -> str:
    """Write a conversation as plain text."""
    return "".join(("> " if message["role"] == "user" else "") + message["content"] + "\n" for message in messages)


def llamactl(*words: str | Path) -> bytes:
    """Print a command of llamactl's and run it; returns what it prints. Ends with its exit code where it fails."""
    command = [str(word) for word in words]
    print(f"\n$ llamactl {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "llamactl", *command], check=False, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

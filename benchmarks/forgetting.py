"""How much of its text a model forgets when it is fine-tuned, with and without text mixed in.

    LLAMACTL_HOME=FOLDER python benchmarks/forgetting.py

A `tiny` of two minutes on the sample learns 2,000 made-up conversations, which have nothing in common with that text: with half
of the rows text, which is the default, and with none. The loss of the base is measured on all held-out text of the sample, that
of the replies on all held-out conversations. A dataset or a run that is in FOLDER already is kept.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

NAMES = ["Washington", "Adams", "Jefferson", "Madison", "Monroe", "Lincoln", "Grant", "Roosevelt", "Wilson", "Truman"]
    "Washington",
    "Adams",
    "Jefferson",
    "Madison",
    "Monroe",
    "Jackson",
    "Lincoln",
    "Grant",
    "Roosevelt",
    "Wilson",
    "Truman",
    "Kennedy",
]
DISHES = ["bread", "soup", "tea", "a cake", "rice", "a salad", "coffee", "an omelet", "pasta", "a pie"]
ANIMALS = ["cat", "dog", "horse", "cow", "bird", "fish", "sheep", "mouse", "bear", "fox"]
COLORS = ["red", "blue", "green", "white", "black", "brown", "yellow"]
CONVERSATIONS = 2_000


def turn(choice: random.Random) -> tuple[str, str]:
    """Make up a question and its answer."""
    a, b = choice.randrange(1, 50), choice.randrange(1, 50)
    name, dish, animal, color = (choice.choice(words) for words in (NAMES, DISHES, ANIMALS, COLORS))
    three = ", ".join(choice.sample(ANIMALS, 3))
    kinds = [
        (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."),
        (
            f"How do I make {dish}?",
            f"To make {dish}, take what you need, mix it well, and wait ten minutes. Then {dish} is ready. Enjoy it!",
        ),
        (f"Hello, my name is {name}.", f"Hello {name}! How can I help you today?"),
        (
            f"Tell me about a {color} {animal}.",
            f"Once there was a {color} {animal}. The {animal} was small and happy. It liked to play all day, and all called it "
            f"the {color} {animal}.",
        ),
        (f"Repeat these words: {three}.", f"{three}."),
        ("Thank you!", "You are welcome. Is there anything else?"),
    ]
    return choice.choice(kinds)


def write_conversations(path: Path) -> None:
    """Write conversations of one to four questions, a third of them with a message of the system."""
    choice = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(CONVERSATIONS):
            messages = [{"role": "system", "content": "You are a friendly assistant."}] if choice.random() < 0.3 else []
            for question, answer in (turn(choice) for _ in range(choice.randint(1, 4))):
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")


def llamactl(*words: str) -> str:
    """Run a command of llamactl's; returns what it prints on stdout."""
    print("$ llamactl", *words, file=sys.stderr)
    done = subprocess.run([sys.executable, "-m", "llamactl", *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def loss(run: str, data: str) -> float:
    """Return the nats per token of a run on all held-out text of a dataset."""
    found = json.loads(llamactl("eval", "--run", run, "--data", data, "--json"))
    return float(next(iter(found["results"].values()))["loss"])


def main() -> None:
    """Train, fine-tune twice, and print the table of docs/chat.md."""
    home = Path(os.environ.get("LLAMACTL_HOME", "."))
    home.mkdir(parents=True, exist_ok=True)
    chats = home / "chat.jsonl"
    if not chats.exists():
        write_conversations(chats)
    llamactl("prepare", "sample")
    if not (home / "runs" / "base").exists():
        llamactl("train", "--data", "sample", "--preset", "tiny", "--time", "2m", "--run", "base")
    for run, share in (("chat-mixed", "0.5"), ("chat-alone", "0")):
        llamactl("finetune", str(chats), "--from", "base", "--run", run, "--mix", share)
    print(f"base        text {loss('base', 'sample'):.3f}")
    for run in ("chat-mixed", "chat-alone"):
        print(f"{run}  text {loss(run, 'sample'):.3f}  replies {loss(run, run):.3f}")


if __name__ == "__main__":
    main()

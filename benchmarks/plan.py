"""What `llamactl plan` says against what happens: memory, time and loss of whole runs.

    python benchmarks/plan.py DATASET [--only 10m]

DATASET is a name under data/ (or LLAMACTL_HOME). Each run is `llamactl train` as people type it, in a process of its own.
Its time counts from the receipt to the prompt, its memory is the most that the process ever held. Every second run is
also planned with `--probe`, which takes 20 steps. Runs are removed afterwards.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from llamactl import durable
from llamactl.artifacts import RunDir

LLAMACTL = [sys.executable, "-m", "llamactl"]
RUN = "benchmark-plan"

# Two presets in three shapes of a batch, with either optimizer, and the large model.
CONFIGURATIONS = (
    "--preset tiny --tokens 300k --set train.tokens_per_step=1024",
    "--preset tiny --tokens 1M --set train.tokens_per_step=2048",
    "--preset tiny --tokens 1M --set train.tokens_per_step=8192 --set train.micro_batch=32 --set optim.name=adamw",
    "--preset 10m --tokens 100k --set train.tokens_per_step=2048 --set train.micro_batch=1",
    "--preset 10m --tokens 200k --set train.tokens_per_step=8192",
    "--preset 10m --tokens 200k --set train.tokens_per_step=8192 --set train.micro_batch=16 --set optim.name=adamw",
    "--preset 150m --tokens 100k",
)


@dataclass(frozen=True)
class Outcome:
    """Bytes, seconds and nats per token: what was said and what came."""

    memory: tuple[float, float]
    seconds: tuple[float, float]
    probed: float
    loss: tuple[float, float]


def measured(words: list[str]) -> Outcome:
    """Plan with a probe, then train, and compare."""
    planning = subprocess.run([*LLAMACTL, "plan", "--probe", "--json", *words], check=True, capture_output=True, text=True)
    tokens = words[words.index("--tokens") + 1]
    probed = json.loads(planning.stdout)
    process = subprocess.Popen([*LLAMACTL, "train", "--run", RUN, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    run = RunDir.named(RUN)
    if status:
        raise SystemExit(f"llamactl train {shlex.join(words)} ended with {status}, {tokens} tokens")
    plan, rows = run.plan(), run.rows()
    seconds = ended - run.plan_path.stat().st_mtime
    losses = [row["loss"] for row in rows if row["kind"] == "validation"]
    outcome = Outcome(
        memory=(total(plan["memory"]), usage.ru_maxrss * 1024),
        seconds=(sum(plan["duration"].values()), seconds),
        probed=sum(next(each for each in probed if each["tokens"] == plan["tokens"])["duration"].values()),
        loss=(plan["loss"]["loss"], losses[-1]),
    )
    durable.remove(run.path)
    return outcome


def total(memory: dict[str, int]) -> int:
    """The most that is there at once."""
    from llamactl.training.forecast import Memory

    return Memory(**memory).total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--only", default="", help="configurations that have this in their words")
    arguments = parser.parse_args()
    print("| run | memory, plan | truth | | time, plan | with --probe | truth | | | loss, plan | truth | |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    ratios = []
    for words in CONFIGURATIONS:
        if arguments.only not in words:
            continue
        outcome = measured([*shlex.split(words), "--data", arguments.dataset])
        (memory, held), (planned, seconds), (expected, loss) = outcome.memory, outcome.seconds, outcome.loss
        ratios.append((memory / held, planned / seconds, outcome.probed / seconds, expected / loss))
        apart = [f"{ratio - 1:+.0%}" for ratio in ratios[-1]]
        print(
            f"| `{words}` | {memory / 1e9:.2f} GB | {held / 1e9:.2f} | {apart[0]} | {planned:.0f} s | {outcome.probed:.0f} | "
            f"{seconds:.0f} | {apart[1]} | {apart[2]} | {expected:.2f} | {loss:.2f} | {apart[3]} |",
            flush=True,
        )
    worst = [max(abs(ratio - 1) for ratio in column) for column in zip(*ratios, strict=True)]
    medians = [statistics.median(abs(ratio - 1) for ratio in column) for column in zip(*ratios, strict=True)]
    names = ("memory", "time", "time with --probe", "loss")
    for name, most, usual in zip(names, worst, medians, strict=True):
        print(f"{name}: {usual:.0%} off in the median, {most:.0%} at most")


if __name__ == "__main__":
    main()

"""What `llamactl plan` says against what happens: memory, time and loss of whole runs.

    python benchmarks/plan.py DATASET [--only 10m]

DATASET is a name under data/ (or LLAMACTL_HOME). Each run is `llamactl train` as people type it, in a process of its own.
Its time counts from the receipt to the prompt, its memory is the most that the process ever held. The run is also planned
with `--probe`, which takes 20 steps. Each process compiles from nothing, as the first run of a kind does. Runs are removed.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic

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
    "--preset 150m --tokens 40k --set train.tokens_per_step=4096",
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
    planning = [*LLAMACTL, "plan", "--probe", "--json", *words]
    with fresh_cache() as surroundings:
        probed = json.loads(subprocess.run(planning, check=True, capture_output=True, text=True, env=surroundings).stdout)
    with fresh_cache() as surroundings:
        return trained(words, probed, surroundings)


def trained(words: list[str], probed: list[dict[str, Any]], surroundings: dict[str, str]) -> Outcome:
    """Train, and hold what happened against what was expected."""
    process = subprocess.Popen([*LLAMACTL, "train", "--run", RUN, *words], stderr=subprocess.PIPE, text=True, env=surroundings)
    assert process.stderr
    process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    run = RunDir.from_name(RUN)
    if status:
        raise SystemExit(f"llamactl train {shlex.join(words)} ended with {status}")
    plan, rows = run.plan(), run.rows()
    seconds = ended - run.plan_path.stat().st_mtime
    losses = [row["loss"] for row in rows if row["kind"] == "validation"]
    outcome = Outcome(
        memory=(total(plan["memory"]), usage.ru_maxrss * 1024),
        seconds=(sum(plan["duration"].values()), seconds),
        probed=sum(next(each for each in probed if each["tokens"] == plan["tokens"])["duration"].values()),
        loss=(plan["loss"]["loss"] if plan["loss"] else math.nan, losses[-1]),
    )
    atomic.remove_folder(run.path)
    return outcome


@contextmanager
def fresh_cache() -> Iterator[dict[str, str]]:
    """An environment in which nothing was compiled yet."""
    with tempfile.TemporaryDirectory() as folder:
        yield {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}


def total(memory: dict[str, int]) -> int:
    """The most that is there at once."""
    from llamactl.planning.memory_estimate import MemoryEstimate

    return MemoryEstimate(**memory).total


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
        apart = ["" if math.isnan(ratio) else f"{ratio - 1:+.0%}" for ratio in ratios[-1]]
        print(
            f"| `{words}` | {memory / 1e9:.2f} GB | {held / 1e9:.2f} | {apart[0]} | {planned:.0f} s | {outcome.probed:.0f} | "
            f"{seconds:.0f} | {apart[1]} | {apart[2]} | {expected:.2f} | {loss:.2f} | {apart[3]} |",
            flush=True,
        )
    for name, column in zip(("memory", "time", "time with --probe", "loss"), zip(*ratios, strict=True), strict=True):
        apart_by = [abs(ratio - 1) for ratio in column if not math.isnan(ratio)]
        print(f"{name}: {statistics.median(apart_by):.0%} off in the median, {max(apart_by):.0%} at most")


if __name__ == "__main__":
    main()

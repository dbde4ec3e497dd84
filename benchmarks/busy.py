"""Measure what other busy processes cost a run: its tokens per second beside some, against its fair share of the cores.

    python benchmarks/busy.py DATASET [--preset tiny] [--busy 0 1 2 4] [--seconds 15] [--repeat 3]

DATASET is a name under data/ (or LLAMACTL_HOME). Each run is `llamactl train` as people type it, beside that many processes
that only count; it is stopped some seconds after its second step, and its speed is the mean over the steps after that one.
Fair is what a run with a thread on each core would get if each core were shared equally by all that runs on it.
Settings of OpenMP that are exported (OMP_NUM_THREADS, OMP_WAIT_POLICY, GOMP_SPINCOUNT) hold for the runs.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llamactl.hardware.limits import usable_cores
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic

RUN = "benchmark-busy"
STARTED = 240.0  # seconds in which two steps must have ended; a run that takes longer counts as standing still


def fair_share(busy: int, cores: int) -> float:
    """Return the fraction of its idle speed that a run keeps when each core is shared equally."""
    return statistics.mean(1 / (1 + busy // cores + (core < busy % cores)) for core in range(cores))


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep some processes counting."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def training_speed(busy: int, arguments: argparse.Namespace) -> float:
    """Return tokens per second of a run beside some busy processes; 0 if it does not end two steps in time."""
    run = RunDir.from_name(RUN)
    words = ["train", "--yes", "--name", RUN, "--data", arguments.dataset, "--preset", arguments.preset]
    settings = [
        "train.tokens=1_000_000_000",
        "train.tokens_per_step=3072",
        "train.compile=off",
        "train.eval_every=1_000_000",
        *arguments.set,
    ]
    words += [word for setting in settings for word in ("--set", setting)]
    with busy_processes(busy):
        process = subprocess.Popen(
            [sys.executable, "-m", "llamactl", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + STARTED
        while len(timed_steps(run)) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        time.sleep(arguments.seconds)
        process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise SystemExit(f"llamactl {' '.join(words)} ended with {process.returncode}")
    steps = timed_steps(run)[2:]
    atomic.remove_folder(run.path)
    return len(steps) / sum(1 / row["tokens_per_second"] for row in steps) if steps else 0.0


def timed_steps(run: RunDir) -> list[dict[str, Any]]:
    """Return the rows of a run's steps so far."""
    return [row for row in run.rows() if row["kind"] == "step"] if run.metrics_path.exists() else []


def main() -> None:
    """Print a row for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a setting of the runs, as llamactl train takes it")
    arguments = parser.parse_args()
    speeds: dict[int, list[float]] = {busy: [] for busy in arguments.busy}
    for _ in range(arguments.repeat):
        for busy, found in speeds.items():
            found.append(training_speed(busy, arguments))
    cores, idle = usable_cores(), statistics.median(speeds[arguments.busy[0]])
    openmp = " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("OMP_", "GOMP_")))
    print(f"{arguments.preset} on {cores} cores {openmp}\n| busy processes | tokens/s | of idle | fair | of fair |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for busy, found in speeds.items():
        kept, fair = statistics.median(found) / idle, fair_share(busy, cores)
        print(f"| {busy} | {statistics.median(found):,.0f} | {kept:.0%} | {fair:.0%} | {kept / fair:.2f} |")


if __name__ == "__main__":
    main()

"""What more processes give, and what they need: whole runs under torchrun beside a run of one process.

    python benchmarks/world.py DATASET [--preset 10m] [--tokens 131072]
    python benchmarks/world.py DATASET --processes 4 --ways fsdp hsdp:2

DATASET is a name under data/ (or LLAMACTL_HOME). Each run is `llamactl train` as people type it: one process with all of the
machine's cores, then as many as `--processes` with their share of them, in turn, `--repeat` times. Tokens a second are the
median over a run's steps but for the first, memory is the most that the leading process ever held, beside what
`llamactl plan` said. Runs are removed.

Where a step goes is measured apart, step by step: gradients, once without the other processes and once with them; Muon's
and AdamW's update, and what of it is waiting for the others.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from llamactl.config.schema import build_config, preset_settings
from llamactl.corpus.dataset import DatasetDir
from llamactl.distributed import parallelize
from llamactl.distributed.context import broadcast_from_rank0, init_device, process_group
from llamactl.hardware.throughput import time_call
from llamactl.planning.memory_estimate import MemoryEstimate
from llamactl.planning.resolve import choose_sharding, resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic
from llamactl.training.trainer import Trainer

RUN = "benchmark-world"
STEPS = 5  # that are measured where a step goes
RATE = 1e12  # of which the share that is reached is not looked at here


@dataclass(frozen=True)
class Outcome:
    """Tokens a second, and bytes of the leading process: what was said and what came."""

    speed: float
    planned: int
    held: int


def launched(processes: int, words: list[str]) -> None:
    """Have as many processes work as are asked for, each with its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *torchrun, *words], stderr=subprocess.PIPE, text=True, check=False, env=surroundings)
    if done.returncode:
        raise SystemExit(done.stderr)


def trained(way: str, arguments: argparse.Namespace) -> Outcome:
    """A whole run in a way to share it."""
    words = ["-m", "llamactl", "train", "--name", RUN, "--data", arguments.dataset, "--preset", arguments.preset]
    words += ["--tokens", str(arguments.tokens), "--parallel", "auto" if way == "one" else way]
    words += [word for setting in arguments.set for word in ("--set", setting)]
    launched(1 if way == "one" else arguments.processes, words)
    run = RunDir.from_name(RUN)
    steps = [row for row in run.rows() if row["kind"] == "step"]
    outcome = Outcome(
        statistics.median(row["tokens_per_second"] for row in steps[1:]),
        MemoryEstimate(**run.plan()["memory"]).total,
        max(row["memory"] for row in steps),
    )
    atomic.remove_folder(run.path)
    return outcome


def where_a_step_goes(arguments: argparse.Namespace) -> None:
    """In each of some processes: medians of the parts of a step, which the leading one prints."""
    dataset = DatasetDir.from_name(arguments.dataset).open()
    settings = {"parallel": arguments.worker, "tokens": arguments.tokens}
    config = build_config([preset_settings(arguments.preset), {"data": {"name": dataset.name}, "train": settings}])
    world = choose_sharding(config, dataset, init_device(config.train))
    config = broadcast_from_rank0(lambda: resolve_config(config, dataset, world))
    made = Trainer(config, dataset, RunDir.from_name(RUN), world, RATE)
    apart = Trainer(config, dataset, RunDir.from_name(RUN), replace(world, rank=0, size=1, shards=1), RATE)
    parts = [timed_step(made, apart) for _ in range(STEPS + 2)][2:]
    alone, gradients, update, waiting = (statistics.median(part) for part in zip(*parts, strict=True))
    for each in (made, apart):
        each.close()
    if world.is_main:
        step = gradients + update
        exchange = max(0.0, gradients - alone) / step
        print(
            f"{arguments.worker}: a step of {step:.2f} s: gradients {alone / step:.0%}, their exchange {exchange:.0%}, "
            f"update {(update - waiting) / step:.0%}, Muon's exchange {waiting / step:.0%}"
        )


def timed_step(made: Trainer, apart: Trainer) -> tuple[float, float, float, float]:
    """Seconds of a step's gradients without the others, of the same with them, of its update, and of that the waiting."""
    waited: list[float] = []

    def timed(work: Callable[..., object]) -> Callable[..., object]:
        def run(*inputs: Any, **options: Any) -> None:
            waited.append(time_call(lambda: work(*inputs, **options), made.world.device))

        return run

    batches, device = made.prefetch(made.state.step), made.world.device
    alone = time_call(lambda: apart.forward_backward(batches), device)
    apart.model.zero_grad()
    dist.barrier()
    total = torch.zeros(())
    gradients = time_call(lambda: total.copy_(made.forward_backward(batches)), device)  # type: ignore[arg-type]
    with (
        patch.object(parallelize, "_all_gather", timed(parallelize._all_gather)),
        patch.object(dist, "all_to_all_single", timed(dist.all_to_all_single)),
    ):
        update = time_call(lambda: made.optimizer_step(total), device)
    made.state.step += 1
    return alone, gradients, update, sum(waited)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--preset", default="10m")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a setting of the runs, as llamactl train takes it")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        with process_group():
            where_a_step_goes(arguments)
        return
    found: dict[str, list[Outcome]] = {way: [] for way in ["one", *arguments.ways]}
    for _ in range(arguments.repeat):
        for way, outcomes in found.items():
            outcomes.append(trained(way, arguments))
    alone = statistics.median(outcome.speed for outcome in found["one"])
    print(f"{arguments.preset}, {arguments.processes} processes:")
    print("| way | tokens/s | of one process | memory, plan | truth | |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, outcomes in found.items():
        names = ("speed", "planned", "held")
        speed, planned, held = (statistics.median(getattr(each, name) for each in outcomes) for name in names)
        memory = f"{planned / 1e6:,.0f} MB | {held / 1e6:,.0f} | {planned / held - 1:+.0%}"
        print(f"| {way} | {speed:,.0f} | {speed / alone:.2f} | {memory} |", flush=True)
    for way in arguments.ways:
        words = [__file__, arguments.dataset, "--preset", arguments.preset, "--tokens", str(arguments.tokens), "--worker", way]
        launched(arguments.processes, words)


if __name__ == "__main__":
    main()

"""How far a text goes that is read again: held-out loss after some epochs of the first tokens of a dataset.

    python benchmarks/repeated.py DATA --out FOLDER --runs 4M:1 1M:8 1M:16:0.2:2 [--seeds 0 1 2] [--preset 10m]
        [--set model.qk_norm=true] [--teachers 3 --teacher 1M:8:0.2:2]

A run is UNIQUE:EPOCHS[:DROPOUT[:WEIGHT_DECAY]]: a preset on so many tokens, read so often. All are measured on the whole
validation split, at a quarter, half, three quarters and the end of the run. Each is a process, `--jobs` at once;
a run that is in FOLDER already is kept. Beside the end stands what the law of `llamactl plan` predicts. With `--teachers` each
run learns from so many others, of seeds of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from llamactl.config.schema import Config, build_config, parse_assignment, preset_settings
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.distributed.context import init_device
from llamactl.planning.loss import predict_loss
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Validated
from llamactl.training.teachers import pin_teachers
from llamactl.training.trainer import train_run
from llamactl.units import read_count

QUARTERS = 4
MOST_TEACHERS = 10
LARGEST = 10**15  # validation tokens: all there are


class Run(NamedTuple):
    """What is trained on, how often, and how it is kept from being learned by heart."""

    unique: str
    epochs: float
    dropout: float = 0.0
    weight_decay: float = 0.1

    @classmethod
    def read(cls, text: str) -> "Run":
        """Read UNIQUE:EPOCHS[:DROPOUT[:WEIGHT_DECAY]]."""
        unique, *numbers = text.split(":")
        return cls(unique, *map(float, numbers))


def configure(run: Run, seed: int, options: argparse.Namespace) -> tuple[Config, Dataset]:
    """Return the config of a run, not resolved, and its dataset: the first tokens of the whole one."""
    whole = DatasetDir.from_name(options.data).open()
    unique = read_count(run.unique)
    dataset = replace(whole, train=[np.concatenate(list(whole.train))[: unique + 1]])
    train = {
        "tokens": int(unique * run.epochs), "dropout": run.dropout, "seed": seed, "device": "cpu", "compile": "on",
        "prompts": (), "eval_tokens": LARGEST, "save_every": 10**9, "save_minutes": 0, "teachers": options.learn_from,
    }  # fmt: skip
    layers = [
        preset_settings(options.preset),
        {"data": {"seed": seed}, "optim": {"weight_decay": run.weight_decay}, "train": train},
    ]
    return build_config([*layers, *map(parse_assignment, options.set)]), dataset


def predict(run: Run, options: argparse.Namespace) -> float:
    """Return the loss that the law predicts for the end of a run."""
    config, dataset = configure(run, 0, options)
    model = resolve_config(config, dataset, init_device(config.train)).model
    return predict_loss(model, config.train.tokens, run.epochs, dataset).loss


def train(run: Run, seed: int, options: argparse.Namespace) -> None:
    """Train in this process, and write down the validation losses."""
    torch.set_num_threads(options.threads)
    config, dataset = configure(run, seed, options)
    world = init_device(config.train)
    config = pin_teachers(resolve_config(config, dataset, world), dataset)
    steps = -(-config.train.tokens // config.train.tokens_per_step)
    config = config.with_train(eval_every=-(-steps // QUARTERS))
    folder = RunDir(Path(f"run-{options.out.stem}"))
    folder.path.mkdir(exist_ok=True)
    losses = [event.loss for event in train_run(config, dataset, folder, world, rate=1.0) if isinstance(event, Validated)]
    options.out.write_text(json.dumps({"losses": losses, "tokens_per_step": config.train.tokens_per_step}))


def measure(run: Run, seed: int, options: argparse.Namespace, teachers: int = 0) -> list[float]:
    """Return the losses of a run, from its file or from a process that makes it, after its teachers."""
    path = result_path(run, seed, options, teachers)
    if not path.exists():
        words = [sys.executable, __file__, options.data, "--out", str(path), "--one", ":".join(map(str, run))]
        words += ["--seeds", str(seed), "--learn-from"]
        for taught in teachers_of(seed, options) if teachers else ():
            # The newest checkpoint of a run: there is the one of its end alone.
            words += map(
                str, (options.out / f"run-{result_path(taught[0], taught[1], options).stem}").glob("checkpoints/step-*")
            )
        words += ["--preset", options.preset, "--threads", str(options.threads)]
        words += [word for setting in options.set for word in ("--set", setting)]
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": str(options.threads)}, cwd=options.out)
    losses: list[float] = json.loads(path.read_text())["losses"]
    return losses


def teachers_of(seed: int, options: argparse.Namespace) -> list[tuple[Run, int]]:
    """Return the runs, each with its seed, that one of a seed learns from."""
    return [(Run.read(options.teacher), (seed + 1) * MOST_TEACHERS + number) for number in range(options.teachers)]


def result_path(run: Run, seed: int, options: argparse.Namespace, teachers: int = 0) -> Path:
    """Return the file of a run's losses."""
    size = [] if options.preset == "tiny" else [options.preset]
    taught = [f"teachers={teachers}x{options.teacher.replace(':', '-')}"] if teachers else []
    folder: Path = options.out
    return folder / f"{'-'.join([*size, *map(str, run), *options.set, *taught, str(seed)])}.json"


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset under data/")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the losses")
    parser.add_argument("--runs", nargs="+", default=["4M:1", "1M:4", "1M:8", "1M:16:0.2:2"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs: model.qk_norm=true")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--teachers", type=int, default=0, help=f"of each run, at most {MOST_TEACHERS}")
    parser.add_argument("--teacher", default="1M:8:0.2:2", help="the run of each teacher")
    parser.add_argument("--learn-from", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.absolute()
    if options.one:
        train(Run.read(options.one), options.seeds[0], options)
        return
    os.environ["LLAMACTL_HOME"] = str(Path(os.environ.get("LLAMACTL_HOME", ".")).absolute())
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [(Run.read(text), seed) for text in options.runs for seed in options.seeds]
    teachers = {teacher: None for _, seed in runs for teacher in teachers_of(seed, options)}
    with ThreadPoolExecutor(options.jobs) as pool:
        # First, as several runs may learn from the same ones.
        list(pool.map(lambda teacher: measure(teacher[0], teacher[1], options), teachers))
        losses = dict(zip(runs, pool.map(lambda run: measure(run[0], run[1], options, options.teachers), runs), strict=True))
    print(" ".join(options.set) or "defaults")
    print("| tokens | epochs | dropout | weight decay | 1/4 | 1/2 | 3/4 | end | law | |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for run in dict.fromkeys(run for run, _ in runs):
        columns = zip(*(losses[run, seed][:QUARTERS] for seed in options.seeds), strict=True)
        means, law = [statistics.mean(column) for column in columns], predict(run, options)
        cells = [run.unique, *(f"{value:g}" for value in run[1:]), *(f"{mean:.3f}" for mean in means)]
        cells += [f"{law:.3f}", f"{law / means[-1] - 1:+.1%}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

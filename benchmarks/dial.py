"""How good the choices of `quickstart` are: its model beside those of a grid that was given the same time.

    python benchmarks/dial.py NAME=TEXT,... --out FOLDER [--time 2m] [--tokenizers ...] [--presets ...] [--steps ...] [--jobs 2]

For each corpus (files or folders, separated by commas) `llamactl quickstart TEXT --time TIME` runs with no other flag, on a
machine that does nothing else. Then each cell of the grid (tokenizer, preset, tokens per step) trains on as many tokens, with
the dropout and the compiler, as `train --time` chooses for it in the time that the quickstart gave to its training: chosen at
once, so that the cells may train later, beside other work, --jobs at a time with one thread each. The measure is bits per byte
on the whole held-out split, the same text for all tokenizers. What is in FOLDER already is not made again.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llamactl import api
from llamactl.checkpoint.io import load_model
from llamactl.checkpoint.select import find_checkpoint
from llamactl.corpus.dataset import DatasetDir
from llamactl.inference.evaluate import evaluate_streams
from llamactl.runs.run_dir import RunDir
from llamactl.units import read_time


class Result(NamedTuple):
    """What was chosen, seconds from the command to its end, tokens trained on, and bits per byte of held-out text."""

    tokenizer: str
    preset: str
    tokens_per_step: int
    tokens: int
    seconds: float
    bits_per_byte: float


def llamactl(words: list[str], **variables: str) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed on stderr. Ends the benchmark when it fails."""
    print("$ llamactl", shlex.join(words), flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "llamactl", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | variables)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - started, done.stderr


def measure(run: RunDir, seconds: float) -> Result:
    """Evaluate a run on the whole validation split."""
    config, dataset = run.config(), DatasetDir.from_name(run.config().data.name).open()
    model, tokenizer, state = load_model(find_checkpoint(run.path.name), torch.device("cpu"))
    found = evaluate_streams(model, tokenizer, dataset.val, rests=False)
    name = dataset.info.recipe.tokenizer
    return Result(name, config.preset, config.train.tokens_per_step, state.tokens, seconds, found.bits_per_byte)


def kept(path: Path) -> Result | None:
    """Read a result that was made before; None without one."""
    return Result(**json.loads(path.read_text())) if path.exists() else None


def quickstart(name: str, texts: list[str], options: argparse.Namespace) -> str:
    """Run quickstart, unless that was done; return the time that it gave to its training."""
    path: Path = options.out / f"{name}-quickstart.json"
    log = path.with_suffix(".log")
    if not path.exists():
        seconds, said = llamactl(["quickstart", *texts, "--time", options.time])
        log.write_text(said)
        # The last run, which may have learned from others.
        run = re.search(r"sample .* --run (\S+) --n", said)
        assert run, said
        path.write_text(json.dumps(measure(RunDir.from_name(run[1]), seconds)._asdict()))
    given = re.search(r"train --data \S+ --time (\S+)", log.read_text())
    assert given, log
    return given[1]


def plan_grid(name: str, texts: list[str], given: str, options: argparse.Namespace) -> Iterator[tuple[Path, list[str]]]:
    """Yield for each cell of the grid where its result is kept, and the command that trains it on what the time buys."""
    for tokenizer, preset, steps in product(options.tokenizers, options.presets, options.steps):
        data = f"{name}-{tokenizer.replace(':', '')}"
        path = options.out / f"{data}-{preset}-{steps}.json"
        plan = path.with_suffix(".plan")
        if not plan.exists():
            if not DatasetDir.from_name(data).path.exists():
                llamactl(["prepare", *texts, "--tokenizer", tokenizer, "--name", data])
            typed = {"train.tokens_per_step": steps}
            chosen = api.train(data, preset=preset, time=given, settings=typed, anyway=True).config
            compiled = "on" if chosen.train.compile == "on" else "off"
            words = ["train", "--data", data, "--preset", preset, "--tokens", str(chosen.train.tokens), "--yes"]
            words += ["--set", f"train.tokens_per_step={steps}", "--set", f"train.compile={compiled}"]
            words += ["--set", f"train.dropout={chosen.train.dropout}", "--patience", str(chosen.train.patience)]
            words += ["--set", f"optim.weight_decay={chosen.optim.weight_decay}"]
            plan.write_text(json.dumps(words))
        yield path, json.loads(plan.read_text())


def train_cell(path: Path, words: list[str]) -> None:
    """Train a cell of the grid with one thread and write its result, unless that was done."""
    if not path.exists():
        run = RunDir.from_name(f"{path.stem}-{os.getpid()}")
        seconds, _ = llamactl([*words, "--run", run.path.name], OMP_NUM_THREADS="1")
        path.write_text(json.dumps(measure(run, seconds)._asdict()))


def show(name: str, given: str, paths: list[Path], options: argparse.Namespace) -> None:
    """Print the table of a corpus, the best cell first, and how far the quickstart is from it."""
    chosen = kept(options.out / f"{name}-quickstart.json")
    cells = sorted(filter(None, map(kept, paths)), key=lambda cell: cell.bits_per_byte)
    assert chosen
    print(f"\n{name}, {options.time}, of them {given} for training")
    print("| | tokenizer | preset | tokens a step | tokens | bits per byte |\n|---|---|---|---:|---:|---:|")
    rows: list[tuple[Any, ...]] = [("quickstart", *chosen), *(("", *cell) for cell in cells)]
    for mark, tokenizer, preset, steps, tokens, _, bits in rows:
        print(f"| {mark} | {tokenizer} | {preset} | {steps:,} | {tokens:,} | {bits:.3f} |")
    over = chosen.seconds / read_time(options.time)
    print(f"{over:.2f} of the time asked; {chosen.bits_per_byte / cells[0].bits_per_byte - 1:+.1%} of the best cell")


def main() -> None:
    """Run the quickstarts, then the cells of all grids, and print a table for each corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="NAME=TEXT,...")
    parser.add_argument("--out", type=Path, required=True, help="a folder for results, data and runs")
    parser.add_argument("--time", default="2m")
    parser.add_argument("--tokenizers", nargs="+", default=["bpe:2048", "bpe:4096", "bpe:8192"])
    parser.add_argument("--presets", nargs="+", default=["tiny", "10m"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1_024, 3_072])
    parser.add_argument("--jobs", type=int, default=2, help="cells that train at a time")
    options = parser.parse_args()
    os.environ["LLAMACTL_HOME"] = str(options.out.absolute())
    options.out.mkdir(parents=True, exist_ok=True)
    planned = []
    for corpus in options.corpora:
        name, _, texts = corpus.partition("=")
        paths = [str(Path(text).absolute()) if Path(text).exists() else text for text in texts.split(",")]
        given = quickstart(name, paths, options)
        planned.append((name, given, list(plan_grid(name, paths, given, options))))
    print("The machine may do other work now.", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda cell: train_cell(*cell), (cell for *_, cells in planned for cell in cells)))
    for name, given, cells in planned:
        show(name, given, [path for path, _ in cells], options)


if __name__ == "__main__":
    main()

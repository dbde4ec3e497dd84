"""How good the choices of `quickstart` are: its model beside those of a grid that was given the same time.

    python benchmarks/dial.py NAME=TEXT,... --out FOLDER [--time 2m] [--tokenizers ...] [--presets ...] [--steps ...]

For each corpus (files or folders, separated by commas) `llamactl quickstart TEXT --time TIME` runs with no other flag, then
each cell of the grid (tokenizer, preset, tokens per step) gets the time that the quickstart gave to its training. The measure
is bits per byte on the whole held-out split, the same text for all tokenizers. What is in FOLDER already is not made again.
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
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

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


def llamactl(words: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed on stderr. Ends the benchmark when it fails."""
    print("$ llamactl", shlex.join(words), flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "llamactl", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
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


def quickstart(texts: list[str], path: Path, options: argparse.Namespace) -> tuple[Result, str]:
    """Run quickstart, unless that was done; return its result and the time that it gave to its training."""
    log = path.with_suffix(".log")
    if not (found := kept(path)):
        seconds, said = llamactl(["quickstart", *texts, "--time", options.time])
        log.write_text(said)
        run = re.search(r"train --data \S+ --time \S+ --run (\S+)", said)
        assert run, said
        found = measure(RunDir.from_name(run[1]), seconds)
        path.write_text(json.dumps(found._asdict()))
    given = re.search(r"train --data \S+ --time (\S+)", log.read_text())
    assert given, log
    return found, given[1]


def grid(name: str, texts: list[str], given: str, options: argparse.Namespace) -> Iterator[Result]:
    """Train each cell of the grid for the given time, unless that was done."""
    for tokenizer, preset, steps in product(options.tokenizers, options.presets, options.steps):
        cell = f"{name}-{tokenizer.replace(':', '')}"
        path = options.out / f"{cell}-{preset}-{steps}.json"
        if not (found := kept(path)):
            if not DatasetDir.from_name(cell).path.exists():
                llamactl(["prepare", *texts, "--tokenizer", tokenizer, "--name", cell])
            run = RunDir.from_name(f"{path.stem}-{os.getpid()}")
            words = ["--data", cell, "--preset", preset, "--time", given, "--run", run.path.name, "--yes"]
            seconds, _ = llamactl(["train", *words, "--set", f"train.tokens_per_step={steps}"])
            found = measure(run, seconds)
            path.write_text(json.dumps(found._asdict()))
        yield found


def main() -> None:
    """Print a table for each corpus, the best cell first, and how far the quickstart is from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="NAME=TEXT,...")
    parser.add_argument("--out", type=Path, required=True, help="a folder for results, data and runs")
    parser.add_argument("--time", default="2m")
    parser.add_argument("--tokenizers", nargs="+", default=["bpe:2048", "bpe:4096", "bpe:8192"])
    parser.add_argument("--presets", nargs="+", default=["tiny", "10m"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1_024, 3_072])
    options = parser.parse_args()
    os.environ["LLAMACTL_HOME"] = str(options.out.absolute())
    options.out.mkdir(parents=True, exist_ok=True)
    for corpus in options.corpora:
        name, _, texts = corpus.partition("=")
        paths = [str(Path(text).absolute()) if Path(text).exists() else text for text in texts.split(",")]
        chosen, given = quickstart(paths, options.out / f"{name}-quickstart.json", options)
        cells = sorted(grid(name, paths, given, options), key=lambda cell: cell.bits_per_byte)
        print(f"\n{name}, {options.time}, of them {given} for training")
        print("| | tokenizer | preset | tokens a step | tokens | seconds | bits per byte |\n|---|---|---|---:|---:|---:|---:|")
        rows: list[tuple[Any, ...]] = [("quickstart", *chosen), *(("", *cell) for cell in cells)]
        for mark, tokenizer, preset, steps, tokens, seconds, bits in rows:
            print(f"| {mark} | {tokenizer} | {preset} | {steps:,} | {tokens:,} | {seconds:.0f} | {bits:.3f} |")
        over = chosen.seconds / read_time(options.time)
        print(f"{over:.2f} of the time asked; {chosen.bits_per_byte / cells[0].bits_per_byte - 1:+.1%} of the best cell")


if __name__ == "__main__":
    main()

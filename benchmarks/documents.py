"""What it gains and costs that documents which share a window do not see one another.

    python benchmarks/documents.py DATASET --seeds 0 1 --tokens 1M [--preset tiny] [--context 256]
    python benchmarks/documents.py DATASET --speed [--micro-batch 8] [--compile off]

DATASET is a name under data/ (or LLAMACTL_HOME). Each seed trains a model both ways, on the same windows in the same order.
Both are then read both ways, on all held-out windows: losses of one column count the same tokens after the same context. With
`--speed` both take steps in turn, and the figures are medians. Runs are made in a temporary folder.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from llamactl.checkpoint.io import load_model
from llamactl.config.schema import Config, DataConfig, build_config, preset_settings
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.targets import window_rule
from llamactl.distributed.context import World, init_device
from llamactl.inference.evaluate import evaluate_streams
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.training.trainer import Trainer, train_run
from llamactl.units import read_count

WAYS = {"see one another": False, "do not": True}
QUIET = {"prompts": (), "eval_every": 10**6, "eval_tokens": 1, "save_every": 10**6, "save_minutes": 0}


def configured(dataset: Dataset, separate: bool, seed: int, options: argparse.Namespace) -> tuple[Config, World]:
    """Resolve the config of a run."""
    train = {**QUIET, "seed": seed, "tokens": read_count(options.tokens), "compile": options.compile}
    layers = [
        preset_settings(options.preset),
        {"model": {"context": options.context}} if options.context else {},
        {"train": {**train, "micro_batch": options.micro_batch, "precision": options.precision}},
        {"data": {"name": dataset.name, "seed": seed, "separate_documents": separate}},
    ]
    config = build_config(layers)
    world = init_device(config.train)
    return resolve_config(config, dataset, world), world


def read_both_ways(run: RunDir, dataset: Dataset, world: World) -> list[float]:
    """Return the losses of a run's last checkpoint in nats per token, of each way to read."""
    model, tokenizer, _ = load_model(run.checkpoint(run.steps()[-1]), world.device)
    rules = [window_rule(dataset, DataConfig(separate_documents=way), model.config.context) for way in WAYS.values()]
    return [evaluate_streams(model, tokenizer, dataset.val, False, dataset.byte_lengths, rule).loss for rule in rules]


def show_losses(dataset: Dataset, options: argparse.Namespace) -> None:
    """Train all and print the losses as a table."""
    print(f"| trained on documents that | seed | {' | '.join(f'read: {way}' for way in WAYS)} |\n|---|---|---:|---:|")
    for seed in options.seeds:
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                run, (config, world) = RunDir(Path(folder) / "run"), configured(dataset, way, seed, options)
                run.path.mkdir()
                for _ in train_run(config, dataset, run, world, rate=1.0):
                    pass
                losses = read_both_ways(run, dataset, world)
            print(f"| {name} | {seed} | {' | '.join(f'{loss:.3f}' for loss in losses)} |", flush=True)


def show_speed(dataset: Dataset, options: argparse.Namespace) -> None:
    """Time steps of both in turn and print the medians."""
    trainers = {}
    for name, way in WAYS.items():
        config, world = configured(dataset, way, 0, options)
        trainers[name] = Trainer(config, dataset, RunDir(Path("nowhere")), world, rate=1.0)
        for notice in trainers[name].compile():
            raise SystemExit(notice.why)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(options.steps + 3):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            list(trainer.train_step())
            if step >= 3:  # the first ones compile
                seconds[name].append(time.perf_counter() - started)
    speeds = {name: config.train.tokens_per_step / statistics.median(times) for name, times in seconds.items()}
    first = next(iter(speeds.values()))
    print("| documents | tokens/s | |\n|---|---:|---:|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.0f} | {speed / first:.2f} |")


def main() -> None:
    """Measure losses or speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--context", type=int, default=0, help="tokens of a window; 0: the preset's")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="off")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20, help="of --speed")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dataset = DatasetDir.from_name(options.dataset).open()
    (show_speed if options.speed else show_losses)(dataset, options)


if __name__ == "__main__":
    main()

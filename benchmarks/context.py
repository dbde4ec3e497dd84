"""What position interpolation gains: a model trained on 256 tokens, continued at 1,024 with and without it.

    python benchmarks/context.py DATASET --seeds 3 --steps 60 --shares 1 0.3 0.1

DATASET is a name under data/ (or LLAMACTL_HOME). Each seed trains a `tiny` model, which is then continued for the same
few steps from the same weights on the same tokens, once with linear:4 and once unscaled, at several shares of the
peak rate of a fresh run. All are read on the same held-out windows of 1,024 tokens; figures are means over seeds of
nats per token. Runs are made in a temporary folder.
"""

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.distributed.context import World, init_device
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.optim.build import default_lr
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.training.init_from import config_from_checkpoint, pin_init_from
from llamactl.training.trainer import train_run

SHORT, LONG = 256, 1024
FACTOR = LONG / SHORT
EVALUATED = 256  # windows
QUIET = {"prompts": (), "eval_every": 10**6, "eval_tokens": 1, "save_every": 10**6}
WAYS = {"linear:4": FACTOR, "unscaled": 1.0}


def trained(config: Config, dataset: Dataset, folder: Path) -> Path:
    """Train to the end of the budget; the last checkpoint."""
    world, run = init_device(config.train), RunDir(folder)
    config = resolve_config(pin_init_from(config, dataset), dataset, world)
    for _ in train_run(config, dataset, run, world, rate=1.0):
        pass
    return run.checkpoint(run.steps()[-1])


@torch.no_grad()
def nats(path: Path, scaling: float, dataset: Dataset, world: World) -> tuple[float, float, float]:
    """Mean loss of a checkpoint on held-out windows: all positions, those the short model knows, and those beyond."""
    model = Llama(read_hf_config(path).model_copy(update={"context": LONG, "rope_scaling": scaling}))
    checkpoint_io.restore_weights(path, model)
    objective, windows = NextToken(model.to(world.device)), Windows(dataset.val, LONG)
    numbers = np.linspace(0, len(windows) - 1, min(EVALUATED, len(windows))).round().astype(np.int64)
    losses = np.zeros(LONG)
    for number in numbers:
        inputs, targets, *_ = windows.batch(np.array([number]))
        with world.precision.compute(world.device):
            losses += objective.per_token(inputs.to(world.device), targets.to(world.device))[0].cpu().double().numpy()
    losses /= len(numbers)
    return losses.mean().item(), losses[:SHORT].mean().item(), losses[SHORT:].mean().item()


def rows(seed: int, dataset: Dataset, folder: Path, options: Any) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Everything that is measured with a seed."""
    common = {**QUIET, "seed": seed, "tokens": options.tokens, "tokens_per_step": 2048}
    config = build_config([preset_settings("tiny"), {"data": {"name": dataset.name, "seed": seed}, "train": common}])
    short, world = trained(config, dataset, folder / "short"), init_device(config.train)
    for way, scaling in WAYS.items():
        yield f"not continued, {way}", nats(short, scaling, dataset, world)
    for share in options.shares:
        for way, scaling in WAYS.items():
            layer = {
                "model": {"context": LONG, "rope_scaling": scaling},
                "data": {"name": dataset.name, "seed": seed + 1000},
                "optim": {"lr": share * default_lr("muon", config.model.dim)},
                "train": {**common, "tokens": options.steps * options.step_tokens, "tokens_per_step": options.step_tokens},
            }
            path = trained(config_from_checkpoint(str(short), [layer]), dataset, folder / f"{way} {share}")
            yield f"continued, {way}, {share:g} of the rate", nats(path, scaling, dataset, world)


def main() -> None:
    """Measure all rows with every seed and print their means as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1_500_000, help="of the short model")
    parser.add_argument("--steps", type=int, default=60, help="of the continuation")
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 0.3, 0.1], help="of the peak rate of a fresh run")
    options = parser.parse_args()
    dataset = DatasetDir.from_name(options.dataset).open()
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for name, losses in rows(seed, dataset, Path(folder), options):
                found[name].append(losses)
                print(seed, name, *(f"{loss:.3f}" for loss in losses), flush=True)
    print(f"\n| {options.steps} steps of {options.step_tokens:,} tokens | all positions | below {SHORT} | from {SHORT} on |")
    print("|---|---:|---:|---:|")
    for name, each in found.items():
        print(f"| {name} | {' | '.join(f'{statistics.mean(column):.3f}' for column in zip(*each, strict=True))} |")


if __name__ == "__main__":
    main()

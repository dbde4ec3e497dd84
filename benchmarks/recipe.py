"""How many tokens a loss takes: llamactl beside nanoGPT, on the same shards, windows, parameters and budget.

    python benchmarks/recipe.py DATA --nanogpt FOLDER_OF_A_CHECKOUT --out FOLDER

nanoGPT's GPT trains with its own recipe (AdamW, betas 0.9 and 0.95, weight decay 0.1, clipping at 1, cosine down to a tenth)
over a grid of learning rates and batch sizes; the best of them then has two seeds more. llamactl has its defaults and `--share`
of the tokens; nothing of it is tuned here. The recipe of the preset `notebook` trains llamactl's model with nanoGPT's
budget. Each run is a process of one thread, `--jobs` of them at a time; a run that is in FOLDER already is kept. All are
measured by `validate_model`, on the same held-out windows.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.batches import Batches, Windows
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.distributed.context import World, init_device
from llamactl.model.objective import NextToken
from llamactl.planning.resolve import resolve_config
from llamactl.report.plots import COLOURS, STYLE
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Validated
from llamactl.training.trainer import train_run
from llamactl.training.validation import validate_model
from llamactl.units import show_count

RATES, BATCHES, SEEDS = (1.5e-3, 3e-3, 6e-3), (1024, 2048, 4096), (0, 1, 2)
POINTS = 8  # validations of a run
# As many parameters as a GPT of width 192 has: its attention shares no keys and values.
SHAPE: dict[str, Any] = {"n_kv_heads": 3, "context": 256}
NOTEBOOK = {**{part: preset_settings("notebook")[part] for part in ("optim", "schedule")}, "train": {"tokens_per_step": 12_800}}


class Run(NamedTuple):
    """What is trained, by which recipe, on how many tokens."""

    who: str
    tokens: int
    seed: int
    lr: float = 0.0
    batch: int = 0

    @property
    def name(self) -> str:
        """A file's name."""
        return "-".join(map(str, self)).replace(" ", "_")


def configured(run: Run, dataset: Dataset) -> tuple[Config, World]:
    """The defaults for `tiny`; what is set besides is the size of the validation."""
    steps = {"eval_tokens": 64_000, "prompts": (), "seed": run.seed, "tokens": run.tokens, "device": "cpu"}
    recipe = NOTEBOOK if run.who == "notebook" else {"train": {"tokens_per_step": run.batch}} if run.batch else {}
    layers = [preset_settings("tiny"), {"model": SHAPE, "data": {"seed": run.seed}}, recipe, {"train": steps}]
    config = build_config(layers)
    world = init_device(config.train)
    config = resolve_config(config, dataset, world)
    total = -(-config.train.tokens // config.train.tokens_per_step)
    return build_config([config.model_dump(), {"train": {"eval_every": max(1, total // POINTS), "compile": "off"}}]), world


def ours(run: Run, dataset: Dataset, _: str) -> Iterator[tuple[int, float]]:
    """Tokens and validation loss along a run of llamactl, which saves nothing but its last checkpoint."""
    config, world = configured(run, dataset)
    config = build_config([config.model_dump(), {"train": {"save_every": 10**9}}])
    for event in train_run(config, dataset, RunDir(Path(f"run-{run.name}")), world, rate=1.0):
        if isinstance(event, Validated):
            yield event.tokens, event.loss


class PerToken(nn.Module):
    """nanoGPT's model with what `validate_model` asks for: the loss of each token."""

    def __init__(self, model: Any) -> None:
        """Wrap a GPT."""
        super().__init__()
        self.model = model

    def per_token(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each target, B T; given targets, nanoGPT's forward gives all logits."""
        logits = self.model(inputs, targets.contiguous())[0].float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def nanogpt(run: Run, dataset: Dataset, folder: str) -> Iterator[tuple[int, float]]:
    """The same of nanoGPT, in the loop of its train.py."""
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config, world = configured(run, dataset)
    shape = config.model
    torch.manual_seed(run.seed)
    sizes = dict(n_layer=shape.n_layers, n_head=shape.n_heads, n_embd=shape.dim, block_size=shape.context)
    with redirect_stdout(sys.stderr):
        model = GPT(GPTConfig(**sizes, vocab_size=shape.vocab_size, bias=False, dropout=0.0))
        optimizer = model.configure_optimizers(0.1, run.lr, (0.9, 0.95), "cpu")
    per_step, steps = run.batch // shape.context, -(-run.tokens // run.batch)
    batches = Batches(Windows(dataset.train, shape.context), per_step, f"{dataset.info.digest} {run.seed}")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = run.lr * nanogpts_schedule(step, steps)
        for inputs, targets, *_ in batches.micro_batches(step, 8):
            with world.precision.compute(world.device):
                loss = model(inputs, targets.contiguous())[1] * (len(inputs) / per_step)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, steps // POINTS) == 0 or step + 1 == steps:
            measured = validate_model(cast(NextToken, PerToken(model)), dataset, config, world)
            yield (step + 1) * run.batch, measured.loss if measured else math.nan


def nanogpts_schedule(step: int, steps: int) -> float:
    """train.py's get_lr: a linear warm-up, here over 5 % of the steps, then cosine to a tenth."""
    warm = round(0.05 * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


WHO: dict[str, Callable[[Run, Dataset, str], Iterator[tuple[int, float]]]] = {
    "llamactl": ours,
    "notebook": ours,
    "nanoGPT": nanogpt,
}
Curve = list[tuple[int, float]]


def curve(run: Run, options: argparse.Namespace) -> Curve:
    """The curve of a run, from its file or from a process that makes it."""
    path = Path(options.out).absolute() / f"{run.name}.json"
    if not path.exists():
        words = [sys.executable, str(Path(__file__).absolute()), options.data, "--nanogpt", options.nanogpt]
        words += ["--out", str(path), "--run", json.dumps(run)]
        home = os.environ.get("LLAMACTL_HOME", ".")
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "LLAMACTL_HOME": home})
    return [(tokens, loss) for tokens, loss in json.loads(path.read_text())]


def make(run: Run, options: argparse.Namespace) -> None:
    """Train in this process and write the curve down when it is complete."""
    torch.set_num_threads(1)
    dataset = DatasetDir.from_name(options.data).open()
    found = list(WHO[run.who](run, dataset, options.nanogpt))
    Path(options.out).write_text(json.dumps(found))


def all_curves(runs: list[Run], options: argparse.Namespace) -> dict[Run, Curve]:
    """The curves of some runs, made a few at a time."""
    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(zip(runs, pool.map(lambda run: curve(run, options), runs), strict=True))


def last(found: Curve) -> float:
    """The loss at the end."""
    return found[-1][1]


def report(groups: dict[str, list[Curve]], target: float) -> None:
    """A row a recipe: its tokens, its losses at the end, and the tokens it took to nanoGPT's."""
    print("| | tokens | loss, mean | of each seed | tokens to nanoGPT's loss |\n|---|---:|---:|---|---:|")
    for name, curves in groups.items():
        losses = [last(found) for found in curves]
        means = [statistics.mean(loss for _, loss in points) for points in zip(*curves, strict=True)]
        reached = next((curves[0][number][0] for number, mean in enumerate(means) if mean <= target), 0)
        there = f"{reached / 1e3:,.0f}k" if reached else "not reached"
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        print(f"| {name} | {curves[0][-1][0] / 1e3:,.0f}k | {statistics.mean(losses):.3f} | {each} | {there} |")


def draw(groups: dict[str, list[Curve]], target: float, path: Path) -> None:
    """The curves, a colour a recipe."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots()
        for (name, curves), colour in zip(groups.items(), COLOURS, strict=False):
            for number, found in enumerate(curves):
                axes.plot(*zip(*found, strict=True), color=colour, linewidth=1.4, label=name if number == 0 else None)
            axes.plot(*curves[0][-1], "o", color=colour, markersize=4)
        axes.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
        axes.set(xlabel="training tokens", ylabel="validation loss, nats per token")
        axes.xaxis.set_major_formatter(lambda value, _: show_count(value))
        axes.legend(frameon=False)
        figure.savefig(path)


def main() -> None:
    """Make what is missing, then print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset under data/")
    parser.add_argument("--nanogpt", required=True, help="a checkout of nanoGPT")
    parser.add_argument("--out", required=True, help="a folder for the curves")
    parser.add_argument("--tokens", type=int, default=1_200_000, help="nanoGPT's budget")
    parser.add_argument("--share", type=float, default=0.4, help="llamactl's part of it")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.nanogpt = str(Path(options.nanogpt).absolute())
    if options.run:
        make(Run(*json.loads(options.run)), options)
        return
    Path(options.out).mkdir(parents=True, exist_ok=True)
    config, _ = configured(Run("llamactl", options.tokens, 0), DatasetDir.from_name(options.data).open())
    print(f"{num_params(config.model):,} parameters, {options.data}\n")
    grid = all_curves([Run("nanoGPT", options.tokens, 0, lr, batch) for batch in BATCHES for lr in RATES], options)
    print("nanoGPT, loss at the end by batch and learning rate\n")
    print("| tokens a step |" + "".join(f" {lr:g} |" for lr in RATES) + "\n|---:|" + "---:|" * len(RATES))
    for batch in BATCHES:
        print(f"| {batch:,} |" + "".join(f" {last(grid[Run('nanoGPT', options.tokens, 0, lr, batch)]):.3f} |" for lr in RATES))
    best = min(grid, key=lambda run: last(grid[run]))
    recipes = {
        "nanoGPT, tuned": [best._replace(seed=seed) for seed in SEEDS],
        "llamactl": [Run("llamactl", round(options.share * options.tokens), seed) for seed in SEEDS],
        "notebook's recipe": [Run("notebook", options.tokens, seed) for seed in SEEDS[:1]],
    }
    found = all_curves([run for runs in recipes.values() for run in runs], options)
    groups = {name: [found[run] for run in runs] for name, runs in recipes.items()}
    target = statistics.mean(last(each) for each in groups["nanoGPT, tuned"])
    print()
    report(groups, target)
    if options.picture:
        draw(groups, target, options.picture)


if __name__ == "__main__":
    main()

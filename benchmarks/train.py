"""How fast a model trains: llamactl beside Hugging Face and nanoGPT, the same shape, batch and context, in one run.

    python benchmarks/train.py --preset 150m --batches 4 16 --nanogpt FOLDER_OF_A_CHECKOUT
    python benchmarks/train.py --preset tiny --batches 16 --nanogpt FOLDER_OF_A_CHECKOUT

A row is a process of its own, which builds the model, takes a few steps to warm up, and gives the median of the next ones:
gradients of one batch, clipping, AdamW. Rows run in turn, `--repeat` times; the figures are medians. Each row measures the
device's matrix rate before and after its steps, so that its share of that rate is its own minute's. FLOPs are those of its
own shape; the share counts products that causal attention needs, whatever a row computes. `start` is the time of the first
step, less that of a usual one: what compiling costs. On a GPU the same command takes `--batches 50 --context 256` or
`--batches 32 --context 1024`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llamactl.checkpoint.hf_config import hf_config
from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, ModelConfig, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.dataset_info import DatasetInfo, Recipe
from llamactl.distributed.context import World, init_device
from llamactl.hardware.memory import peak_memory
from llamactl.hardware.throughput import datasheet_flops, matmul_flops
from llamactl.planning.flops import flops_per_token
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import byte_tokenizer
from llamactl.training.trainer import Trainer

Step = Callable[[], object]
Row = tuple[Step, float]  # a step, and the FLOPs of a token of it


def random_tokens(vocab_size: int) -> Dataset:
    """A dataset in memory; which tokens they are has no bearing on how fast they are trained on."""
    recipe = Recipe(source="random", inputs="", tokenizer="bytes", val_fraction=0.1)
    info = DatasetInfo(
        recipe=recipe, tokenizer="", vocab_size=vocab_size, dtype="uint16", shards=(), documents_read=0, skipped={}
    )
    tokens = np.random.default_rng(0).integers(0, vocab_size, 4_000_000).astype(np.uint16)
    return Dataset("random", info, byte_tokenizer(), (tokens,), (tokens[:100_000],))


def configured(options: argparse.Namespace) -> tuple[Config, Dataset, World]:
    """The run that each row is about."""
    vocabulary = options.vocabulary or {"tiny": 4096}.get(options.preset, 50_304)
    dataset = random_tokens(vocabulary)
    tokens = options.batch * options.context
    train: dict[str, Any] = {"tokens_per_step": tokens, "tokens": 10_000 * tokens, "precision": options.precision}
    train["device"] = options.device
    layers = [
        preset_settings(options.preset),
        {"model": {"context": options.context}, "train": train, "optim": {"name": "adamw"}},
    ]
    config = build_config([*layers, {"train": {"compile": "on" if options.row.endswith("compiled") else "off"}}])
    if options.row.startswith("llamactl, Muon"):
        config = build_config([config.model_dump(), {"optim": {"name": "muon"}}])
    world = init_device(config.train)
    return resolve_config(config, dataset, world), dataset, world


def llamactl(config: Config, dataset: Dataset, world: World, _: argparse.Namespace) -> Row:
    """Ours, as `llamactl train` runs it."""
    trainer = Trainer(config, dataset, RunDir(Path("nowhere")), world, rate=1.0)
    for notice in trainer.compile():
        raise SystemExit(notice.why)
    return lambda: list(trainer.train_step()), flops_per_token(config.model)


def hugging_face_llama(config: Config, dataset: Dataset, world: World, options: argparse.Namespace) -> Row:
    """LlamaForCausalLM of the same shape, its own loss, fused AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    # Without a cache, as its own Trainer has it: a step would build one of all layers' keys and values and drop it.
    model = LlamaForCausalLM(LlamaConfig(**hf_config(config.model) | {"use_cache": False}))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params(config.model)
    step = peer(model, lambda forward, x, y: forward(input_ids=x, labels=x).loss, config, dataset, world, options)
    return step, flops_per_token(config.model)


def nanogpt(config: Config, dataset: Dataset, world: World, options: argparse.Namespace) -> Row:
    """A GPT of as many layers, heads and channels."""
    sys.path.insert(0, options.nanogpt)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    shape = config.model
    heads = shape.dim // shape.head_dim
    sizes = dict(n_layer=shape.n_layers, n_head=heads, n_embd=shape.dim, block_size=shape.context, vocab_size=shape.vocab_size)
    model: nn.Module = GPT(GPTConfig(bias=False, dropout=0.0, **sizes))
    # As `flops_per_token` counts: 6 for a weight that a token is multiplied with, and attention.
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    flops = 6 * weights + 12 * shape.n_layers * shape.dim * shape.context
    return peer(model, lambda forward, x, y: forward(x, y)[1], config, dataset, world, options), flops


def peer(
    model: nn.Module, loss: Callable[..., Tensor], config: Config, dataset: Dataset, world: World, options: argparse.Namespace
) -> Step:
    """A training step of somebody else's model."""
    model.to(world.device).train()
    forward = torch.compile(model) if options.row.endswith("compiled") else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    windows = torch.from_numpy(dataset.train[0][: 100 * options.batch * (config.model.context + 1)].astype(np.int64))
    windows = windows.view(100, options.batch, config.model.context + 1)
    numbers = iter(range(100))

    def step() -> None:
        rows = windows[next(numbers)].to(world.device)
        with world.precision.compute(world.device):
            found = loss(forward, rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        torch.autograd.backward(found)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.item()

    return step


ROWS: dict[str, Callable[[Config, Dataset, World, argparse.Namespace], Row]] = {
    "llamactl, eager": llamactl,
    "llamactl, compiled": llamactl,
    "llamactl, Muon, eager": llamactl,
    "llamactl, Muon, compiled": llamactl,
    "Hugging Face, eager": hugging_face_llama,
    "Hugging Face, compiled": hugging_face_llama,
    "nanoGPT, eager": nanogpt,
    "nanoGPT, compiled": nanogpt,
}


def future_flops(model: ModelConfig) -> float:
    """FLOPs of a token with later keys, which causal attention can leave out: it sees (T + 1) / 2 of T positions on average."""
    return 12 * model.n_layers * model.n_heads * model.head_dim * (model.context - 1) / 2


def largest_operators(step: Step, device: torch.device, steps: int = 3, count: int = 10) -> list[tuple[str, float]]:
    """The operators that take most of a step's time, each by itself, with their shares; on a GPU those of its kernels."""
    with torch.profiler.profile() as profile:
        for _ in range(steps):
            step()
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, field) for event in profile.key_averages()}
    names = sorted(times, key=lambda name: -times[name])[:count]
    return [(name, times[name] / sum(times.values())) for name in names]


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The figures of a row, in this process."""
    config, dataset, world = configured(options)
    before = matmul_flops(world.device, world.precision.dtype)
    step, flops = ROWS[options.row](config, dataset, world, options)
    seconds = []
    for _ in range(options.warmup + options.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    usual = statistics.median(seconds[options.warmup :])
    speed = options.batch * options.context / usual
    rate = max(before, matmul_flops(world.device, world.precision.dtype))
    share = speed * (flops - future_flops(config.model)) / rate
    start = sum(seconds[: options.warmup]) - options.warmup * usual
    found = {"speed": speed, "share": share, "rate": rate, "memory": peak_memory(world.device), "start": start}
    for name, part in largest_operators(step, world.device) if options.profile else ():
        print(f"| {options.row} | {name} | {part:.1%} |", file=sys.stderr)
    # MFU is of the data sheet, where the device is in the table of cards.
    sheet = datasheet_flops(world.device, world.precision.dtype)
    return {**found, "mfu": speed * flops / sheet} if sheet else found


def main() -> None:
    """Measure all rows and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="150m")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="windows of a step")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=0, help="4,096 for tiny, else GPT-2's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT; without it its rows are left out")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure")
    parser.add_argument("--profile", action="store_true", help="print the ten largest operators of each row too")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        json.dump(measure(options), sys.stdout)
        return
    rows = [name for name in options.only if options.nanogpt or not name.startswith("nanoGPT")]
    print(
        "| batch | | tokens/s | of the matrix rate | GFLOP/s | peak memory, MB | start, s |\n|---|---|---:|---:|---:|---:|---:|"
    )
    for batch in options.batches:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for _ in range(options.repeat):
            for name, found in runs.items():
                words = [sys.executable, __file__, *sys.argv[1:], "--row", name, "--batch", str(batch)]
                found.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
        for name, found in runs.items():
            middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
            print(
                f"| {batch} x {options.context} | {name} | {middle['speed']:,.0f} | {middle['share']:.0%} | "
                f"{middle['rate'] / 1e9:,.0f} | {middle['memory'] / 1e6:,.0f} | {middle['start']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

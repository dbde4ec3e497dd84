"""What a step, attention, decoding or a full card asks of CUDA: test_rehearsal.py runs it on a driver that computes nothing.

Each command prints lines of JSON. Counts and bytes are what PyTorch really asked for; losses mean nothing.
"""

import argparse
import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch._inductor.scheduler import Scheduler
from torch._inductor.utils import fresh_cache
from torch.profiler import ProfilerActivity, profile

from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.dataset_info import DatasetInfo, Recipe
from llamactl.distributed.context import World, init_device, process_group
from llamactl.hardware.device import choose_device
from llamactl.hardware.throughput import matmul_flops
from llamactl.model.attention import sdpa
from llamactl.model.continuous import Continuation, ContinuousBatch
from llamactl.model.convert import convert_weights
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama
from llamactl.model.objective import CHUNK_ON_GPU, fused_chunk
from llamactl.model.row_steps import CAPTURED_AFTER
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import byte_tokenizer
from llamactl.training.trainer import Trainer, train_run

RATE, VOCABULARY = 989e12, 50_304


class Counts(ctypes.Structure):
    """The counters of the driver, since they were set to 0."""

    _fields_ = [
        *(
            (name, ctypes.c_long)
            for name in ["launches", "syncs", "d2h", "d2h_pageable", "pinned", "pageable", "mallocs", "products", "ooms"]
        ),
        *((name, ctypes.c_double) for name in ["product_flops", "d2h_bytes", "h2d_bytes", "bytes_set"]),
    ]


driver = ctypes.CDLL("libcuda.so.1")
driver.fake_stats.restype = ctypes.POINTER(Counts)


def counted(work: Callable[[], object]) -> dict[str, int]:
    """Run something and return what it asked of the driver."""
    driver.fake_reset()
    work()
    counts = driver.fake_stats().contents
    names = ("launches", "syncs", "d2h", "d2h_pageable", "pinned", "pageable", "products")
    return {name: int(getattr(counts, name)) for name in names}


def random_tokens() -> Dataset:
    """Make a dataset in memory; which tokens it has does not matter here."""
    recipe = Recipe(source="random", inputs="", tokenizer="bytes", val_fraction=0.1)
    info = DatasetInfo(
        recipe=recipe, tokenizer="", vocab_size=VOCABULARY, dtype="uint16", shards=(), documents_read=0, skipped={}
    )
    tokens = np.random.default_rng(0).integers(0, 256, 4_000_000).astype(np.uint16)
    return Dataset("random", info, byte_tokenizer(), (tokens,), (tokens[:100_000],))


def resolved(preset: str, train: dict[str, Any], context: int, dataset: Dataset) -> tuple[Config, World]:
    """Resolve the config of a run on the GPU; a `context` of 0 is the preset's."""
    layers = [preset_settings(preset), {"train": {"device": "cuda", **train}}]
    config = build_config([*layers, {"model": {"context": context}} if context else {}])
    world = init_device(config.train)
    return resolve_config(config, dataset, world), world


def step(preset: str, windows: int, context: int, compile: str) -> None:
    """Print the counts of the gradients and the update of a later step, the plan's bytes and those at the peak.

    A graph keeps its memory, also what it has not allocated at the moment.
    """
    dataset = random_tokens()
    tokens = windows * (context or build_config([preset_settings(preset)]).model.context)
    train = {"tokens_per_step": tokens, "tokens": 10_000 * tokens, "micro_batch": windows, "compile": compile}
    config, world = resolved(preset, train, context, dataset)
    planned = make_plan(config, dataset, world, RATE).memory
    trainer = Trainer(config, dataset, RunDir(Path("nowhere")), world, RATE)
    degraded = [event.why for event in trainer.compile()]
    for _ in range(2):
        list(trainer.train_step())
    torch.cuda.reset_peak_memory_stats()
    batches, losses = trainer.prefetch(trainer.state.step), list[Any]()
    gradients = counted(lambda: losses.append(trainer.forward_backward(batches)))
    update = counted(lambda: trainer.optimizer_step(losses[0]))
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    graphs = [segment for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0)]
    unused = sum(segment["total_size"] - segment["allocated_size"] for segment in graphs)
    peak = torch.cuda.max_memory_allocated() + unused + planned.program
    found = {"gradients": gradients, "update": update, "planned": planned.total, "peak": peak}
    print(json.dumps(found | {"degraded": degraded}))
    trainer.close()


def loss_traffic() -> None:
    """Print the bytes that the compiled chunk of the loss reads and writes for 32k tokens, by the compiler's count."""
    counted_bytes, generate = list[int](), Scheduler.codegen

    def count(scheduler: Scheduler) -> Any:
        counted_bytes.extend(node.get_read_write_buffers_sizes() for node in scheduler.nodes)
        return generate(scheduler)

    logits = torch.zeros(CHUNK_ON_GPU, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    with patch.object(Scheduler, "codegen", count), fresh_cache():
        torch.compile(fused_chunk, dynamic=False)(logits, torch.zeros(CHUNK_ON_GPU, 1, device="cuda", dtype=torch.int64))
    print(json.dumps({"bytes": sum(counted_bytes) * 32_768 // CHUNK_ON_GPU}))


def save(preset: str) -> None:
    """Print the counts of two checkpoints, of which the second has the memory of the first."""
    dataset = random_tokens()
    train = {"tokens_per_step": 4096, "tokens": 8 * 4096, "compile": "off"}
    config, world = resolved(preset, train, 0, dataset)
    with TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.start(config, {}, False)
        trainer = Trainer(config, dataset, run, world, RATE)
        for _ in range(2):
            list(trainer.train_step())
            print(json.dumps(counted(lambda: list(trainer.save_checkpoint()))), flush=True)
        list(trainer.poll(wait=True))
        trainer.close()


def rate() -> None:
    """Print the counts of a measurement of the matrix rate in five tries."""
    print(json.dumps(counted(lambda: matmul_flops(torch.device("cuda"), torch.bfloat16, tries=5))))


def kernels() -> None:
    """Print the kernels of PyTorch that attention launches with its gradients, by format, key/value heads and mask."""
    known = {"flash_attention", "efficient_attention", "attention_math", "cudnn_attention"}
    for dtype, heads, masked in product(("bfloat16", "float16", "float32"), (8, 2), (False, True)):
        q, k, v = (
            torch.randn(2, count, 256, 64, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
            for count in (8, heads, heads)
        )
        mask = torch.ones(256, 256, dtype=torch.bool, device="cuda").tril() if masked else None
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            torch.autograd.backward(sdpa(q, k, v, mask).sum())
        names = {event.key.removeprefix("aten::_scaled_dot_product_") for event in watched.key_averages()}
        print(json.dumps([dtype, heads, masked, sorted(names & known)]))


def full_card(windows: int, compile: str) -> None:
    """Train a run whose micro-batch is too large for the card, and print its events."""
    dataset = random_tokens()
    tokens = windows * 512
    train = {"tokens_per_step": tokens, "tokens": 3 * tokens, "micro_batch": windows, "compile": compile, "eval_tokens": 8192}
    config, world = resolved("10m", train, 512, dataset)
    with TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.start(config, {}, False)
        for event in train_run(config, dataset, run, world, RATE):
            print(json.dumps([type(event).__name__, getattr(event, "why", "")]), flush=True)


def second_card() -> None:
    """Print which card is the current one after the second was chosen."""
    choose_device("cuda:1")
    print(json.dumps([torch.cuda.current_device()]))


def decode(kind: str) -> None:
    """Print the counts of ten decoded tokens."""
    config = build_config([preset_settings("150m"), {"model": {"vocab_size": VOCABULARY}}]).model
    model = convert_weights(Llama(config).cuda().eval(), kind)
    steps = decode_tokens(model, [[1, 2, 3, 4]], VOCABULARY, Sampler(0.0), [0])
    list(islice(steps, CAPTURED_AFTER + 4))
    print(json.dumps(counted(lambda: list(islice(steps, 10)))))


def rows(number: int) -> None:
    """Print the counts of ten steps of texts of different lengths that are continued together, then of ten without one."""
    config = build_config([preset_settings("150m"), {"model": {"vocab_size": VOCABULARY}}]).model
    model = convert_weights(Llama(config).cuda().eval(), "bf16")
    batch = ContinuousBatch(model, VOCABULARY)
    texts = [Continuation([1, 2, 3, 4][: 1 + length % 4], Sampler(0.0), length, model) for length in range(number)]
    for text in texts:
        batch.add(text)

    def take(steps: int) -> None:
        for _ in range(steps):
            list(batch.step())

    take(CAPTURED_AFTER + 4)
    print(json.dumps(counted(lambda: take(10))), flush=True)
    batch.remove(texts[1])
    take(1)
    print(json.dumps(counted(lambda: take(10))))


def together(parallel: str) -> None:
    """Train one of several processes for a few steps, in micro-batches."""
    dataset = random_tokens()
    train = {"tokens_per_step": 16 * 512, "tokens": 2 * 16 * 512, "micro_batch": 4, "compile": "off", "eval_tokens": 8192}
    config, world = resolved("10m", train, 512, dataset)
    shared = replace(world, shards=world.size if parallel == "fsdp" else 1)
    with process_group(), TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.start(config, {}, False)
        names = [type(event).__name__ for event in train_run(config, dataset, run, shared, RATE)]
    print(json.dumps({"events": names, "device": torch.cuda.current_device()}))


def main() -> None:
    """Run one command."""
    # The driver has no cuDNN.
    torch.backends.cuda.enable_cudnn_sdp(False)
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    words: dict[str, Callable[..., None]] = {
        "step": step, "kernels": kernels, "full_card": full_card, "second_card": second_card, "decode": decode,
        "together": together, "save": save, "rate": rate, "rows": rows,
        "loss_traffic": loss_traffic,
    }  # fmt: skip
    for name, work in words.items():
        command = commands.add_parser(name)
        for argument, kind in work.__annotations__.items():
            if argument != "return":
                command.add_argument(argument, type=int if kind in (int, bool) else kind)
    options = vars(parser.parse_args())
    words[options.pop("command")](**options)


if __name__ == "__main__":
    main()

"""Train and sample in 20 lines of Python, after `llamactl prepare sample`: iterate the trainer, use its events as you like."""

import torch

from llamactl.checkpoint.io import open_model
from llamactl.config.schema import build_config, preset_settings
from llamactl.corpus.dataset import DatasetDir
from llamactl.distributed.context import init_device
from llamactl.hardware.throughput import peak_flops
from llamactl.inference.generate import Request, generate_samples
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.storage.locks import hold_lock
from llamactl.training.events import Stepped, Validated
from llamactl.training.provenance import collect_environment
from llamactl.training.trainer import train_run

settings = {"data": {"name": "sample"}, "train": {"tokens": 200_000, "tokens_per_step": 2048}}
config = build_config([preset_settings("tiny"), settings])
dataset, world = DatasetDir.from_name(config.data.name).open(), init_device(config.train)
config = resolve_config(config, dataset, world)  # works out what was left open: learning rate, micro-batch, ...
rate = peak_flops(world.device, world.precision.dtype)

run = RunDir.with_new_name("python")
with hold_lock(run.lock_path):
    run.start(config, collect_environment(config, dataset, world))
    for event in train_run(config, dataset, run, world, rate):
        match event:
            case Stepped(step=step, loss=loss) if step % 10 == 0:
                print(f"step {step}: loss {loss:.3f}")
            case Validated(loss=loss):
                print(f"validation {loss:.3f}")

path, model, tokenizer, state = open_model(run.path.name, torch.device("cpu"))
for text in generate_samples(model, tokenizer, Request(prompts=("The people ",), max_new_tokens=40)):
    print("".join(sample.new for sample in text), end="", flush=True)
print()

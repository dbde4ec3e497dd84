"""What the machine can do, and what training makes of it."""

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config
from llamactl.errors import NoRoom
from llamactl.model.device import NAMES, Precision
from llamactl.training.events import Slowed
from llamactl.training.meter import bandwidth, finish, matrix_rate, peak_memory, sheet_rate
from llamactl.training.sizing import flops_per_token
from llamactl.training.trainer import Trainer
from llamactl.training.world import World

WARM_UP = 2  # steps that are slower than the rest: compiling, first use of memory


@dataclass(frozen=True)
class Peak:
    """The device's own limits: FLOP/s of products by number format, and bytes a second of its memory."""

    device: str
    threads: int
    rates: dict[str, float]
    sheet: float
    bandwidth: float


@dataclass(frozen=True)
class Measured:
    """Training steps, timed: medians of a step's parts in seconds, and what follows from them."""

    tokens_per_second: float
    mfu: float
    matrix_share: float
    matrix_rate: float
    memory: int
    start: float
    step: float
    data: float
    gradients: float
    optimizer: float


def peak(world: World) -> Peak:
    """Measure what the device can do at best."""
    cuda = world.device.type == "cuda"
    formats = [dtype for dtype in NAMES if cuda or dtype in (torch.float32, world.precision.dtype)]
    rates = {NAMES[dtype]: matrix_rate(World(world.device, Precision(dtype, ""))) for dtype in formats}
    name = torch.cuda.get_device_name(world.device) if cuda else str(world.device)
    return Peak(name, torch.get_num_threads(), rates, sheet_rate(world), bandwidth(world))


def training(config: Config, dataset: Dataset, run: RunDir, world: World, steps: int) -> Measured:
    """Take a few steps of a run that is never saved, part by part, and measure them."""
    rate = matrix_rate(world)
    trainer = Trainer(config, dataset, run, world, rate)
    list(trainer.compile())
    first = [sum(_parts(trainer)) for _ in range(WARM_UP)]
    parts = [_parts(trainer) for _ in range(steps)]
    data, gradients, optimizer = map(statistics.median, zip(*parts, strict=True))
    step = statistics.median(map(sum, parts))
    rate = max(rate, matrix_rate(world))
    speed = config.train.tokens_per_step / step
    flops = speed * flops_per_token(config.model)
    return Measured(
        tokens_per_second=speed,
        mfu=flops / (sheet_rate(world) or rate),
        matrix_share=flops / rate,
        matrix_rate=rate,
        memory=peak_memory(world),
        start=max(0.0, sum(first) - WARM_UP * step),
        step=step,
        data=data,
        gradients=gradients,
        optimizer=optimizer,
    )


def _parts(trainer: Trainer) -> tuple[float, float, float]:
    """Seconds that one step waits for its data, works out its gradients, and moves the weights."""
    device, times = trainer.world.device, [time.perf_counter()]
    batches = trainer.ahead(trainer.step)
    times.append(time.perf_counter())
    total = trainer.gradients(batches)
    if isinstance(total, Slowed):
        raise NoRoom("The micro-batch does not fit into the memory.", "", "Try: --set train.micro_batch=1")
    finish(device)
    times.append(time.perf_counter())
    trainer.update(total)
    finish(device)
    times.append(time.perf_counter())
    trainer.step += 1
    waiting, gradients, update = (after - before for before, after in pairwise(times))
    return waiting, gradients, update

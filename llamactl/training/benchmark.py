"""Benchmarks of the device and of training steps on it."""

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import OutOfSpace
from llamactl.hardware.device import NAMES, format_of_products
from llamactl.hardware.memory import peak_memory
from llamactl.hardware.throughput import datasheet_flops, matmul_flops, memory_bandwidth, synchronize
from llamactl.planning.flops import flops_per_token
from llamactl.runs.run_dir import RunDir
from llamactl.training.trainer import Trainer

# Steps not measured: the first compiles, and both allocate memory.
WARM_UP = 2


@dataclass(frozen=True)
class DeviceLimits:
    """Limits of the device: FLOP/s of matrix products by dtype and on the data sheet, and memory bandwidth in bytes/s."""

    device: str
    threads: int
    rates: dict[str, float]
    sheet: float
    bandwidth: float


@dataclass(frozen=True)
class StepMeasurement:
    """Timed training steps: the medians of a step and its phases in seconds, `start` for warm-up, `memory` in bytes."""

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


def measure_device(world: World) -> DeviceLimits:
    """Measure the FLOP/s and the memory bandwidth of the device."""
    cuda = world.device.type == "cuda"
    # On a CPU only fp32 and the format of training: others may be emulated and slow.
    formats = [dtype for dtype in NAMES if cuda or dtype in (torch.float32, world.precision.dtype)]
    rates = {format_of_products(world.device, dtype): matmul_flops(world.device, dtype) for dtype in formats}
    name = torch.cuda.get_device_name(world.device) if cuda else str(world.device)
    return DeviceLimits(
        name,
        torch.get_num_threads(),
        rates,
        datasheet_flops(world.device, world.precision.dtype),
        memory_bandwidth(world.device),
    )


def benchmark_training(config: Config, dataset: Dataset, run: RunDir, world: World, steps: int) -> StepMeasurement:
    """Time `steps` optimizer steps, phase by phase, of a run that is not saved; raises OutOfSpace."""
    rate = matmul_flops(world.device, world.precision.dtype)
    trainer = Trainer(config, dataset, run, world, rate)
    started = time.perf_counter()
    list(trainer.compile())
    compiling = time.perf_counter() - started
    warm_up = [sum(time_step(trainer)) for _ in range(WARM_UP)]
    timings = [time_step(trainer) for _ in range(steps)]
    data, gradients, optimizer = map(statistics.median, zip(*timings, strict=True))
    step = statistics.median(map(sum, timings))
    # Measured before and after, and the better one taken: clocks and other processes change it.
    rate = max(rate, matmul_flops(world.device, world.precision.dtype))
    speed = config.train.tokens_per_step / step
    flops = speed * flops_per_token(config.model)
    return StepMeasurement(
        tokens_per_second=speed,
        mfu=flops / (datasheet_flops(world.device, world.precision.dtype) or rate),
        matrix_share=flops / rate,
        matrix_rate=rate,
        memory=peak_memory(world.device),
        start=max(0.0, compiling + sum(warm_up) - WARM_UP * step),
        step=step,
        data=data,
        gradients=gradients,
        optimizer=optimizer,
    )


def time_step(trainer: Trainer) -> tuple[float, float, float]:
    """Run one step; return the seconds for waiting for data, for the gradients and for the update."""
    device, times = trainer.world.device, [time.perf_counter()]
    batches = trainer.prefetch(trainer.state.step)
    times.append(time.perf_counter())
    loss_sum = trainer.forward_backward(batches)
    if loss_sum is None:
        raise OutOfSpace("The micro-batch does not fit into the memory.", "", "Try: --set train.micro_batch=1")
    # A GPU runs asynchronously: without this the time of the gradients would count as the update's.
    synchronize(device)
    times.append(time.perf_counter())
    trainer.optimizer_step(loss_sum)
    synchronize(device)
    times.append(time.perf_counter())
    trainer.state.step += 1
    data, gradients, update = (after - before for before, after in pairwise(times))
    return data, gradients, update

"""How fast a run goes, held against what the device can do."""

import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llamactl.training.cards import recognise
from llamactl.training.world import World


def peak_rate(world: World) -> float:
    """FLOP/s that the device could do: its data sheet's for a known GPU, else measured here."""
    return sheet_rate(world) or matrix_rate(world)


def sheet_rate(world: World) -> float:
    """The rate on the data sheet of a known GPU, 0 for anything else."""
    if world.device.type != "cuda" or world.precision.dtype.itemsize != 2:
        return 0.0
    card = recognise(torch.cuda.get_device_name(world.device))
    return card.rate if card else 0.0


def matrix_rate(world: World, tries: int = 5) -> float:
    """FLOP/s of the best of a few products of square matrices, in the format that the world computes in."""
    size = 8192 if world.device.type == "cuda" else 1536
    a = torch.randn(size, size, device=world.device).to(world.precision.dtype)
    return 2 * size**3 / min(seconds(lambda: a @ a, world.device) for _ in range(tries))


def bandwidth(world: World, tries: int = 5) -> float:
    """Bytes a second that the memory moves: the best of a few copies of an array that no cache holds, read and written."""
    size = 1 << 30 if world.device.type == "cuda" else 1 << 28
    source = torch.ones(size // 4, device=world.device)
    target = torch.empty_like(source)
    return 2 * size / min(seconds(lambda: target.copy_(source), world.device) for _ in range(tries))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes, to the end of what it leaves the device to do."""
    finish(device)
    started = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_memory(world: World) -> int:
    """The most bytes used so far: of the GPU, or of this process."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    try:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

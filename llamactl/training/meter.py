"""How fast a run goes, held against what the device can do."""

import platform
import resource
import time

import torch

from llamactl.training.world import World

# Dense bf16 tensor-core rates in FLOP/s, from the makers' data sheets (research: training.md, section 5).
PEAKS = {
    "A4000": 76.7e12,
    "A5000": 111.1e12,
    "A6000": 154.8e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A100": 312e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "B200": 2250e12,
}


def peak_rate(world: World) -> float:
    """FLOP/s that the device could do: its data sheet's for a known GPU, else measured here with one large product."""
    if world.device.type == "cuda" and world.precision.name == "bf16":
        name = torch.cuda.get_device_name(world.device)
        known = [rate for card, rate in PEAKS.items() if card in name.split() or card in name]
        if known:
            return known[-1]
    return _measured_rate(world)


def _measured_rate(world: World, size: int = 1536, tries: int = 5) -> float:
    """The best of a few products of square matrices."""
    a = torch.randn(size, size, device=world.device, dtype=world.precision.dtype)
    best = float("inf")
    for _ in range(tries):
        started = time.perf_counter()
        a @ a
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def peak_memory(world: World) -> int:
    """The most bytes used so far: of the GPU, or of this process."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

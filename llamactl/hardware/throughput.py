"""Measure what a device can do: FLOP/s of matrix products, bytes per second of its memory."""

import time
from collections.abc import Callable

import torch

from llamactl.hardware.gpus import recognize_card

# Seconds of products after which a GPU that was idle has raised its clock.
WARM_UP = 0.5


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOP/s of a device: from the data sheet of a known GPU, else measured."""
    return datasheet_flops(device, dtype) or matmul_flops(device, dtype)


def datasheet_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the data sheet's FLOP/s of a known GPU for a 16-bit format; 0 for any other device or format."""
    # Tensor cores multiply fp16 as fast as bf16; the table has no figure for fp32.
    if device.type != "cuda" or dtype.itemsize != 2:
        return 0.0
    card = recognize_card(torch.cuda.get_device_name(device))
    return card.rate if card else 0.0


def matmul_flops(device: torch.device, dtype: torch.dtype, tries: int = 5) -> float:
    """Measure the FLOP/s of products of square matrices, the best of some tries."""
    # One product takes about 1 ms on an H100 and 16 ms on two CPU cores: long compared with the overhead of a call.
    size = 8192 if device.type == "cuda" else 1536
    a = torch.randn(size, size, device=device).to(dtype)
    if device.type == "cuda":
        started = time.perf_counter()
        while time.perf_counter() - started < WARM_UP:
            time_call(lambda: a @ a, device)
    # Other processes only make a try slower, so the fastest is nearest to what the hardware can do.
    return 2 * size**3 / min(time_call(lambda: a @ a, device) for _ in range(tries))


def memory_bandwidth(device: torch.device, tries: int = 5) -> float:
    """Measure the bytes per second, read plus written, of copying an array too large for caches, the best of some tries."""
    size = 1 << 30 if device.type == "cuda" else 1 << 28
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(time_call(lambda: target.copy_(source), device) for _ in range(tries))


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds of a call, including the work that it leaves running on the device."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""The processes that take part in a run; the only file that says "rank"."""

import ctypes
import os
import sys
from dataclasses import dataclass

import torch

from llamactl.config import TrainConfig
from llamactl.model.device import Precision, choose_device, choose_precision

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class World:
    """One process of a run and what it computes on. A world of one is the usual case.

    `room` is the device's memory in bytes where that can't be asked for, as of a card that is somewhere else.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    size: int = 1
    room: int = 0


def keep_freed_memory() -> None:
    """Have glibc reuse what is freed instead of giving it back to the kernel, which fills it with zeros for the next step.

    Page faults took three quarters of the time of products this size (docs/benchmarks.md).
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)


def join(train: TrainConfig) -> World:
    """The world this process belongs to, from the run's settings."""
    device = choose_device(train.device)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny gradients else cost a CPU a hundred times a product
    torch.set_float32_matmul_precision("high")
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic)
    return World(device, choose_precision(train.precision, device))

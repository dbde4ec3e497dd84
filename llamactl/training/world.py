"""The processes that take part in a run; the only file that says "rank"."""

from dataclasses import dataclass

import torch

from llamactl.config import TrainConfig
from llamactl.model.device import Precision, choose_device, choose_precision


@dataclass(frozen=True)
class World:
    """One process of a run and what it computes on. A world of one is the usual case."""

    device: torch.device
    precision: Precision
    rank: int = 0
    size: int = 1


def join(train: TrainConfig) -> World:
    """The world this process belongs to, from the run's settings."""
    device = choose_device(train.device)
    torch.set_flush_denormal(True)  # tiny gradients else cost a CPU a hundred times a product
    torch.set_float32_matmul_precision("high")
    return World(device, choose_precision(train.precision, device))

"""Optimizers: Muon for the matrices inside blocks with AdamW for the rest, or AdamW for all."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from llamactl.config import OptimConfig
from llamactl.model.llama import Llama
from llamactl.training.muon import Deal, Muon, alone


def muon(model: Llama, config: OptimConfig, dtype: torch.dtype = torch.float32, deal: Deal = alone) -> list[Optimizer]:
    """Muon, with its products in `dtype`, for the matrices inside blocks; AdamW for embedding, head and norms.

    The embedding moves `embedding_scale` times as fast: a row has a gradient only where its token occurs.
    """
    matrices, rest = split(model)
    embedding = model.model.embed_tokens.weight
    groups: list[dict[str, Any]] = [
        {"params": [embedding], "rate_scale": config.embedding_scale},
        {"params": [parameter for parameter in rest if parameter is not embedding]},
    ]
    return [Muon(matrices, config, dtype, deal), _adamw(groups, config)]


def adamw(model: Llama, config: OptimConfig, dtype: torch.dtype = torch.float32, deal: Deal = alone) -> list[Optimizer]:
    """AdamW for all, which has no products to take a `dtype`; only the matrices inside blocks decay."""
    matrices, rest = split(model)
    return [_adamw([{"params": rest}, {"params": matrices, "weight_decay": config.weight_decay}], config)]


def split(model: Llama) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside blocks, and all other parameters."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    inside = set(matrices)
    return matrices, [parameter for parameter in model.parameters() if parameter not in inside]


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> AdamW:
    fused = groups[0]["params"][0].device.type != "mps"
    return AdamW(groups, config.lr, (config.beta1, config.beta2), config.eps, weight_decay=0.0, fused=fused)


def set_pace(optimizers: list[Optimizer], lr: float, momentum: float) -> None:
    """Give each group its share of the learning rate, and Muon its momentum."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = lr * group.get("rate_scale", 1.0)
        if "momentum" in group:
            group["momentum"] = momentum


OPTIMIZERS: dict[str, Callable[..., list[Optimizer]]] = {"muon": muon, "adamw": adamw}

# Peak learning rates at width 768. They fall with the root of the width, as nanochat's for AdamW do.
PEAK_AT_768 = {"muon": 3.6e-3, "adamw": 1.8e-3}


# How much faster the embedding learns under Muon (docs/recipe.md); one that is the head too has gradients everywhere.
EMBEDDING_SCALE = 20.0
EMBEDDING_SCALE_TIED = 1.0

# The share of that which a run peaks at when it starts from trained weights (docs/benchmarks.md).
CONTINUED_RATE = 0.3


def peak_rate(name: str, width: int) -> float:
    """The default learning rate of an optimizer at a width."""
    return PEAK_AT_768[name] * math.sqrt(768 / width)

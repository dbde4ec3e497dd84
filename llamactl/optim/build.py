"""Build the optimizers of a model: Muon for the matrices inside blocks and AdamW for the rest, or AdamW for all."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from llamactl.config.schema import OptimConfig
from llamactl.distributed.dtensor import split_sharded
from llamactl.model.llama import Llama
from llamactl.optim.muon import Muon, MuonExchange, local_update


def build_muon(
    model: Llama, config: OptimConfig, dtype: torch.dtype = torch.float32, exchange: MuonExchange = local_update
) -> list[Optimizer]:
    """Build Muon for the matrices inside blocks, with its products in `dtype`, and AdamW for embedding, head and norms.

    `exchange` splits Muon's matrices over ranks.
    """
    # A row of the embedding has a gradient only in steps in which its token occurs: a larger learning rate makes up for that.
    matrices, rest = split_parameters(model)
    embedding = model.model.embed_tokens.weight
    groups: list[dict[str, Any]] = [
        {"params": [embedding], "rate_scale": config.embedding_scale},
        {"params": [parameter for parameter in rest if parameter is not embedding]},
    ]
    return [Muon(matrices, config, dtype, exchange), _adamw(groups, config)]


def build_adamw(
    model: Llama, config: OptimConfig, dtype: torch.dtype = torch.float32, exchange: MuonExchange = local_update
) -> list[Optimizer]:
    """Build AdamW for all parameters, with weight decay for the matrices inside blocks only."""
    # `dtype` and `exchange` are Muon's: they are here so that OPTIMIZERS can be called alike.
    matrices, rest = split_parameters(model)
    return [_adamw([{"params": rest}, {"params": matrices, "weight_decay": config.weight_decay}], config)]


def split_parameters(model: Llama) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters of a model into the matrices inside blocks and all others."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    inside = set(matrices)
    return matrices, [parameter for parameter in model.parameters() if parameter not in inside]


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> AdamW:
    """Build AdamW for parameter groups; a group without a weight decay of its own has none."""
    fused = groups[0]["params"][0].device.type != "mps"
    # FSDP leaves vectors whole, which takes groups of their own.
    alike = [{**group, "params": part} for group in groups for part in split_sharded(group["params"]) if part]
    return AdamW(alike, config.lr, (config.beta1, config.beta2), config.eps, weight_decay=0.0, fused=fused)


def set_lr_and_momentum(optimizers: list[Optimizer], lr: float, momentum: float) -> None:
    """Set the learning rate of each group, `lr` times the group's scale, and Muon's momentum."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = lr * group.get("rate_scale", 1.0)
        if "momentum" in group:
            group["momentum"] = momentum


OPTIMIZERS: dict[str, Callable[..., list[Optimizer]]] = {"muon": build_muon, "adamw": build_adamw}

# Default peak learning rates at width 768. They fall with the square root of the width, as nanochat's for AdamW do; Muon's
# was checked at two widths (docs/recipe.md).
PEAK_AT_768 = {"muon": 3.6e-3, "adamw": 1.8e-3}

# The embedding's multiple of the learning rate with Muon (docs/recipe.md). A tied one is the head as well, whose rows have
# gradients in every step.
EMBEDDING_SCALE = 20.0
EMBEDDING_SCALE_TIED = 1.0

# The fraction of the default learning rate for a run that starts from trained weights: measured on a run that continued at a
# longer context (docs/benchmarks.md).
CONTINUED_RATE = 0.3
# The same for one that is fine-tuned on conversations, with AdamW: measured with and without text mixed in (docs/chat.md).
FINETUNED_RATE = 0.06


def default_lr(name: str, width: int) -> float:
    """Return the default peak learning rate of an optimizer for a model of some width."""
    return PEAK_AT_768[name] * math.sqrt(768 / width)

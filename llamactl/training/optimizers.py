"""Optimizers: Muon for the matrices inside blocks with AdamW for the rest, or AdamW for all."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from llamactl.config import OptimConfig
from llamactl.model.llama import Llama

# Coefficients of the quintic Newton-Schulz step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (... rows x columns) with all their singular values brought near 1, by Newton-Schulz in `dtype`."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with all matrices of a shape in one stack.

    Steps are scaled to the size AdamW's have (Liu et al. 2025, arXiv 2502.16982), so that one learning rate and one
    weight decay serve both. Equal to `torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, which goes matrix by
    matrix, and in bf16 also on a CPU without bf16 instructions, where that takes six times as long.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`params` are matrices; Nesterov momentum, decoupled weight decay, and Newton-Schulz in `dtype`."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for shape, parameters in stacks.items():
                self._update(parameters, shape, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, parameters: list[nn.Parameter], shape: torch.Size, lr: float, decay: float, momentum: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._buffer(parameter) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        updates = orthogonalise(torch.stack(ahead), self._dtype).unbind()
        weights: list[Tensor] = list(parameters)
        torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_add_(weights, updates, alpha=-lr * 0.2 * math.sqrt(max(shape)))

    def _buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        return buffer


def muon(model: Llama, config: OptimConfig, dtype: torch.dtype = torch.float32) -> list[Optimizer]:
    """Muon, with its products in `dtype`, for the matrices inside blocks; AdamW for embedding, head and norms.

    The embedding moves `embedding_scale` times as fast: a row has a gradient only where its token occurs.
    """
    matrices, rest = split(model)
    embedding = model.model.embed_tokens.weight
    groups: list[dict[str, Any]] = [
        {"params": [embedding], "rate_scale": config.embedding_scale},
        {"params": [parameter for parameter in rest if parameter is not embedding]},
    ]
    return [Muon(matrices, config.lr, config.weight_decay, config.momentum, dtype), _adamw(groups, config)]


def adamw(model: Llama, config: OptimConfig, dtype: torch.dtype = torch.float32) -> list[Optimizer]:
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


OPTIMIZERS: dict[str, Callable[[Llama, OptimConfig, torch.dtype], list[Optimizer]]] = {"muon": muon, "adamw": adamw}

# Peak learning rates at width 768. They fall with the root of the width, as nanochat's for AdamW do.
PEAK_AT_768 = {"muon": 3.6e-3, "adamw": 1.8e-3}


# How much faster the embedding learns under Muon (docs/benchmarks.md); one that is the head too has gradients everywhere.
EMBEDDING_SCALE = 20.0
EMBEDDING_SCALE_TIED = 1.0

# The share of that which a run peaks at when it starts from trained weights (docs/benchmarks.md).
CONTINUED_RATE = 0.3


def peak_rate(name: str, width: int) -> float:
    """The default learning rate of an optimizer at a width."""
    return PEAK_AT_768[name] * math.sqrt(768 / width)

"""Muon: momentum, orthogonalised, for the matrices inside blocks."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamactl.config import OptimConfig

# Coefficients of the quintic Newton-Schulz step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
WIDE = 1.5  # columns to a row from which the way through the Gram matrix is the shorter one


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (... rows x columns) with all their singular values brought near 1, by Newton-Schulz in `dtype`."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # bf16 can't hold the squares of small singular values, which the way through the Gram matrix needs.
    x = _through_gram(x) if dtype == torch.float32 and x.shape[-1] >= WIDE * x.shape[-2] else _newton_schulz(x)
    return (x.mT if tall else x).to(matrices.dtype)


def newton_schulz_flops(rows: int, columns: int) -> float:
    """FLOPs of orthogonalising a matrix with no more rows than columns."""
    if columns >= WIDE * rows:
        return 4 * rows**2 * columns + (8 * NEWTON_SCHULZ_STEPS - 6) * rows**3
    return NEWTON_SCHULZ_STEPS * (4 * rows**2 * columns + 2 * rows**3)


def _newton_schulz(x: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _through_gram(x: Tensor) -> Tensor:
    """The same with the small matrix x @ x.mT alone, which every factor is a polynomial of: a third less work at 3 to 8."""
    a, b, c = NEWTON_SCHULZ
    gram, one = x @ x.mT, torch.eye(x.shape[-2], device=x.device)
    product = a * one + b * gram + c * gram @ gram
    factor = product
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ gram @ factor
        factor = a * one + b * gram + c * gram @ gram
        product = factor @ product
    return product @ x


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with all matrices of a shape in one stack.

    Steps are scaled to the size AdamW's have (Liu et al. 2025, arXiv 2502.16982), so that one learning rate and one
    weight decay serve both. With a `row_memory`, rows that have moved a lot move less, and the others more, at the same
    size of the whole (NorMuon, Li et al. 2025, arXiv 2510.05491). Without, it is equal to
    `torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, which goes matrix by matrix, and in bf16 also on a CPU without
    bf16 instructions, where that takes six times as long.
    """

    def __init__(self, params: Iterable[nn.Parameter], config: OptimConfig, dtype: torch.dtype = torch.float32) -> None:
        """`params` are matrices; Nesterov momentum, decoupled weight decay, and Newton-Schulz in `dtype`."""
        settings = ("lr", "weight_decay", "momentum", "row_memory")
        super().__init__(params, {name: getattr(config, name) for name in settings})
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
                weights: list[Tensor] = list(parameters)
                updates = self._updates(parameters, group["momentum"], group["row_memory"])
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates.unbind(), alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _updates(self, parameters: list[nn.Parameter], momentum: float, row_memory: float) -> Tensor:
        """The directions in which some matrices of one shape move, in a stack, each with singular values near 1."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._remembered(parameter, "momentum", parameter.shape) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        updates = orthogonalise(torch.stack(ahead), self._dtype)
        if not row_memory:
            return updates
        squares = updates.square().mean(-1)
        rows = [self._remembered(parameter, "rows", parameter.shape[:1]) for parameter in parameters]
        torch._foreach_lerp_(rows, squares.unbind(), 1 - row_memory)
        even = updates * torch.stack(rows).clamp(min=1e-10).rsqrt()[..., None]
        return even * (updates.norm(dim=(-2, -1), keepdim=True) / even.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-10))

    def _remembered(self, parameter: nn.Parameter, name: str, shape: torch.Size) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros(shape, device=parameter.device)
        found: Tensor = state[name]
        return found

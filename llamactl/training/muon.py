"""Muon: momentum, orthogonalised, for the matrices inside blocks."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamactl.config import OptimConfig
from llamactl.tensors import local

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


Work = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Deal = Callable[[Work, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def alone(work: Work, matrices: Tensor, beside: Tensor, _: int) -> tuple[Tensor, Tensor]:
    """All of the work done here: the deal of a world of one, of which `parallel.Deal` is the other kind."""
    return work(matrices, beside)


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with all matrices of a shape in one stack.

    Steps are scaled to the size AdamW's have (Liu et al. 2025, arXiv 2502.16982), so that one learning rate and one
    weight decay serve both. With a `row_memory`, rows that have moved a lot move less, and the others more, at the same
    size of the whole (NorMuon, Li et al. 2025, arXiv 2510.05491). Without, it is equal to
    `torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, which goes matrix by matrix, and in bf16 also on a CPU without
    bf16 instructions, where that takes six times as long. Of sharded matrices each process holds rows, and so it does of
    their momentum.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], config: OptimConfig, dtype: torch.dtype = torch.float32, deal: Deal = alone
    ) -> None:
        """`params` are matrices; Nesterov momentum, decoupled weight decay, and Newton-Schulz in `dtype`.

        `deal` says which process orthogonalises which matrix.
        """
        settings = ("lr", "weight_decay", "momentum", "row_memory")
        super().__init__(params, {name: getattr(config, name) for name in settings})
        self._dtype, self._deal = dtype, deal

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for shape, parameters in stacks.items():
                weights = [local(parameter) for parameter in parameters]
                updates = self._updates(parameters, group["momentum"], group["row_memory"])
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates.unbind(), alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _updates(self, parameters: list[nn.Parameter], momentum: float, row_memory: float) -> Tensor:
        """The directions in which some matrices of one shape move, in a stack, each with singular values near 1."""
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        buffers = [local(self._remembered(parameter, "momentum")) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
        rows = [local(self._remembered(parameter, "rows")) for parameter in parameters] if row_memory else []
        beside = torch.stack(rows)[..., None] if rows else ahead[..., :0]
        updates, moved = self._deal(partial(self._directions, row_memory=row_memory), ahead, beside, parameters[0].shape[0])
        if rows:
            torch._foreach_copy_(rows, moved[..., 0].unbind())
        return updates

    def _directions(self, matrices: Tensor, rows: Tensor, row_memory: float) -> tuple[Tensor, Tensor]:
        """Where matrices move, and how much each of their rows has moved lately, in a column."""
        updates = orthogonalise(matrices, self._dtype)
        if not row_memory:
            return updates, rows
        rows = rows.lerp(updates.square().mean(-1, keepdim=True), 1 - row_memory)
        even = updates * rows.clamp(min=1e-10).rsqrt()
        size, now = (each.norm(dim=(-2, -1), keepdim=True) for each in (updates, even))
        return even * (size / now.clamp(min=1e-10)), rows

    def _remembered(self, parameter: nn.Parameter, name: str) -> Tensor:
        """A number for each weight, or for each row, laid out as the parameter is."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter if name == "momentum" else parameter[:, 0])
        found: Tensor = state[name]
        return found

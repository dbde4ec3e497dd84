"""Muon: orthogonalized momentum for the matrices inside blocks."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamactl.config.schema import OptimConfig
from llamactl.distributed.dtensor import local_shard

# Coefficients of the quintic Newton-Schulz step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
WIDE = 1.5  # columns per row from which the Gram matrix takes fewer FLOPs: there the two counts below are equal


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrices (N x rows x columns) with all singular values brought near 1, by Newton-Schulz in `dtype`."""
    # x @ x.mT is the smaller one of the two Gram matrices if x has no more rows than columns.
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT.contiguous() if tall else x  # each product would copy a view
    # No singular value is above the Frobenius norm; the iteration converges for those up to 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # bf16 is too coarse for the squares of small singular values, which are in the Gram matrix.
    x = _through_gram(x) if dtype == torch.float32 and x.shape[-1] >= WIDE * x.shape[-2] else _newton_schulz(x)
    return (x.mT if tall else x).to(matrices.dtype)


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Count the FLOPs of orthogonalizing a matrix that has no more rows than columns."""
    # A product of a rows x rows matrix with x takes 2 rows^2 columns FLOPs, with another such matrix 2 rows^3.
    if columns >= WIDE * rows:
        return 4 * rows**2 * columns + (8 * NEWTON_SCHULZ_STEPS - 6) * rows**3
    return NEWTON_SCHULZ_STEPS * (4 * rows**2 * columns + 2 * rows**3)


def _newton_schulz(x: Tensor) -> Tensor:
    """Orthogonalize matrices of norm 1, with no more rows than columns, by the products of the original algorithm."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        # Sums within the products: no rounding and no pass over memory in between.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _through_gram(x: Tensor) -> Tensor:
    """Do the same as `_newton_schulz` on the Gram matrix x @ x.mT alone: a third less work for shapes of 3:8."""
    # Each step multiplies x by a polynomial in its Gram matrix, so the steps can be multiplied first and x once, at the end.
    a, b, c = NEWTON_SCHULZ
    gram, identity = x @ x.mT, torch.eye(x.shape[-2], device=x.device)
    product = a * identity + b * gram + c * gram @ gram
    factor = product
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        # The Gram matrix of factor @ x, as factor is symmetric.
        gram = factor @ gram @ factor
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
    return product @ x


# Work is done on full matrices and their extra columns; an exchange gives it those from a rank's rows of them.
Work = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MuonExchange = Callable[[Work, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def local_update(work: Work, matrices: Tensor, extra: Tensor, _: int) -> tuple[Tensor, Tensor]:
    """Apply `work` to all matrices on this rank; `DistributedMuon` splits them over ranks instead."""
    return work(matrices, extra)


class Muon(Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024), with all matrices of one shape in one stack.

    Updates have the RMS of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate and one weight decay serve
    both. With a `normuon_beta2`, each row is divided by the root of its mean square over past updates, at the same norm of the
    matrix (NorMuon, Li et al. 2025, arXiv 2510.05491). Without, the result is that of
    `torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, which takes one matrix at a time, and bf16 also on a CPU without
    bf16 instructions, where it is six times slower. The state of a sharded matrix is sharded by rows as the matrix is.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        config: OptimConfig,
        dtype: torch.dtype = torch.float32,
        exchange: MuonExchange = local_update,
    ) -> None:
        """Set up Muon for matrices `params`, with Nesterov momentum, decoupled weight decay, and Newton-Schulz in `dtype`.

        `exchange` splits the matrices over ranks.
        """
        settings = ("lr", "weight_decay", "momentum", "normuon_beta2")
        super().__init__(params, {name: getattr(config, name) for name in settings})
        self._dtype, self._exchange = dtype, exchange

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient; `closure` is ignored."""
        for group in self.param_groups:
            # By the full shape, also of sharded matrices.
            stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for shape, parameters in stacks.items():
                weights = [local_shard(parameter) for parameter in parameters]
                updates = self._updates(parameters, group["momentum"], group["normuon_beta2"])
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                # 0.2 sqrt(max(rows, columns)) is the factor to AdamW's RMS (Liu et al. 2025).
                torch._foreach_add_(weights, updates.unbind(), alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _updates(self, parameters: list[nn.Parameter], momentum: float, normuon_beta2: float) -> Tensor:
        """Compute the updates of N matrices of one shape: this rank's rows, N x local rows x columns."""
        gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
        buffers = [local_shard(self._state_tensor(parameter, "momentum")) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
        averages = [local_shard(self._state_tensor(parameter, "rows")) for parameter in parameters] if normuon_beta2 else []
        # One more column, so that the averages reach the rank that has the full matrix; no column without NorMuon.
        extra = torch.stack(averages)[..., None] if averages else nesterov[..., :0]
        work = partial(self._orthogonal_updates, normuon_beta2=normuon_beta2)
        updates, new_averages = self._exchange(work, nesterov, extra, parameters[0].shape[0])
        if averages:
            torch._foreach_copy_(averages, new_averages[..., 0].unbind())
        return updates

    def _orthogonal_updates(self, matrices: Tensor, averages: Tensor, normuon_beta2: float) -> tuple[Tensor, Tensor]:
        """Orthogonalize N x rows x columns matrices and normalize their rows; return the updates and new averages.

        `averages` (N x rows x 1) are moving averages of the mean square of each row.
        """
        updates = orthogonalize(matrices, self._dtype)
        if not normuon_beta2:
            return updates, averages
        averages = averages.lerp(updates.square().mean(-1, keepdim=True), 1 - normuon_beta2)
        normalized = updates * averages.clamp(min=1e-10).rsqrt()
        # The norm of the update stays as it was: the learning rate alone sets its size.
        norm, new_norm = (tensor.norm(dim=(-2, -1), keepdim=True) for tensor in (updates, normalized))
        return normalized * (norm / new_norm.clamp(min=1e-10)), averages

    def _state_tensor(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Return a state of a parameter, a number per weight or per row, sharded as the parameter is; zeros at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter if name == "momentum" else parameter[:, 0])
        tensor: Tensor = state[name]
        return tensor

"""The training objective: the cross-entropy of the next token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamactl.model.distillation import Taught, Teachers
from llamactl.model.llama import Llama, compute_dtype

# Rows of logits that exist at a time. 1,024 reach full speed on a CPU; a GPU needs more work in each kernel that it launches.
CHUNK, CHUNK_ON_GPU = 1024, 8192

# A target that does not count, as torch.nn.functional.cross_entropy has it.
IGNORED = -100

FusedChunk = Callable[[Tensor, Tensor], Tensor]


class NextToken(nn.Module):
    """The model and its loss as one module, so that both can be sharded together.

    The full logits are never stored: with GPT-2's vocabulary those of 16,384 tokens would take 3.3 GB, and their gradient as
    much again.
    """

    def __init__(self, model: Llama) -> None:
        """Wrap a model; the names of the model's own parameters do not change."""
        super().__init__()
        self.model = model
        self.fused_chunk: FusedChunk | None = None  # `fused_chunk` where it is compiled
        self.teachers: Teachers | None = None

    def forward(
        self, inputs: Tensor, targets: Tensor, dropout: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross-entropy in nats per token, a scalar in fp32, of `targets` (B T) given `inputs` (B T).

        A target of `IGNORED` has the loss 0 and no gradient. `dropout` and `documents` are those of `Decoder.forward`. With
        `teachers` the gradient is that of what they predict as well (`distillation.taught_chunk`).
        """
        hidden = self._hidden(inputs, dropout, documents)
        taught = self.teachers.read(inputs, documents) if self.teachers else None
        return mean_loss(hidden, self.model.lm_head.weight, targets.flatten(), self.fused_chunk, taught)

    @torch.no_grad()
    def per_token(self, inputs: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of each target in nats, B T in fp32, without gradients; that of an ignored one is 0."""
        hidden, wanted = self._hidden(inputs, documents=documents), targets.flatten()
        head = self.model.lm_head.weight.to(hidden.dtype)
        parts = [slice(start, start + CHUNK) for start in range(0, len(wanted), CHUNK)]
        losses = [F.cross_entropy((hidden[part] @ head.mT).float(), wanted[part], reduction="none") for part in parts]
        return torch.cat(losses).view_as(targets)

    def _hidden(self, inputs: Tensor, dropout: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Return the input of the output head, N D with N = B T, in the dtype of autocast where that is enabled."""
        hidden = self.model.hidden(inputs, dropout=dropout, documents=documents).flatten(0, 1)
        return hidden.to(compute_dtype(hidden))


def mean_loss(
    hidden: Tensor, head: Tensor, targets: Tensor, fused: FusedChunk | None = None, taught: Taught | None = None
) -> Tensor:
    """Return the mean cross-entropy in nats, a scalar in fp32, of `targets` (N) given the logits `hidden` @ `head`.T.

    Targets of `IGNORED` add nothing to the sum, and count in the N that it is divided by.

    `hidden` is N D and `head` is V D. Only a chunk of the logits' rows exists at a time; `fused` computes what follows from a
    chunk in two passes over it. `torch.nn.functional.linear_cross_entropy` does the same from torch 2.13 on, but returns the
    loss in bf16 where the products are in bf16, whose neighbouring numbers are 0.03 nats apart.
    """
    total: Tensor = _ChunkedSum.apply(hidden, head, targets, fused, taught)  # type: ignore[no-untyped-call]
    return total / len(targets)


def rows_of_chunk(tokens: int, device_type: str, fused: FusedChunk | None) -> int:
    """Return how many rows of logits exist at a time; `fused` is compiled for one shape, so that all its chunks are alike."""
    if not fused:
        return CHUNK
    least = -(-tokens // (CHUNK_ON_GPU if device_type == "cuda" else CHUNK))
    # At most twice as many as are needed: a number of tokens that has no such divisor takes two shapes.
    chunks = next((count for count in range(least, 2 * least + 1) if tokens % count == 0), least)
    return -(-tokens // chunks)


def fused_chunk(logits: Tensor, wanted: Tensor) -> Tensor:
    """Replace logits (N V) by their gradient and return the sum of the cross-entropies of `wanted` (N 1), in fp32.

    Compiled, this reads the logits twice and writes them once; each operation by itself would read and write all of them.
    """
    scores, counts = logits.float(), wanted >= 0
    peaks = scores.amax(-1, keepdim=True)
    totals = peaks + (scores - peaks).exp().sum(-1, keepdim=True).log()
    loss = (totals - scores.gather(-1, wanted.clamp(min=0))).where(counts, 0.0).sum()
    is_wanted = torch.arange(logits.shape[-1], device=logits.device) == wanted
    # A row that does not count is divided by infinity: its gradient is 0.
    logits.copy_((scores - totals.where(counts, torch.inf)).exp() - is_wanted.float())
    return loss


class _ChunkedSum(torch.autograd.Function):
    """The sum of cross-entropies; the forward pass computes the gradients too, so that no logits are kept or computed again.

    It follows Liger's fused loss (Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, fused: FusedChunk | None, taught: Taught | None
    ) -> Tensor:
        weight, size = head.to(hidden.dtype), rows_of_chunk(len(targets), hidden.device.type, fused)
        hidden_gradient, head_gradient = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), device=hidden.device)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            rows, wanted = hidden[part], targets[part, None]
            pull = rows @ weight.mT
            if taught:
                loss += taught.chunk(pull, wanted, taught.compute_logits(part), taught.share)
            elif fused:
                loss += fused(pull, wanted)
            else:
                pull = _logit_gradient(pull, wanted, loss)
            hidden_gradient[part] = pull @ weight
            _add_product(head_gradient, pull.mT, rows)
            del pull  # before the next chunk is made
        ctx.save_for_backward(hidden_gradient, head_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        return hidden_gradient * scale, head_gradient * scale, None, None, None


def _logit_gradient(products: Tensor, wanted: Tensor, loss: Tensor) -> Tensor:
    """Return the gradient of a chunk of logits (N V), in their dtype, and add its cross-entropies to `loss`."""
    logits, counts, wanted = products.float(), wanted >= 0, wanted.clamp(min=0)
    logits -= logits.amax(-1, keepdim=True)
    loss -= logits.gather(-1, wanted).where(counts, 0.0).sum()
    chances = logits.exp_()
    sums = chances.sum(-1, keepdim=True)
    loss += sums.log().where(counts, 0.0).sum()
    # A row that does not count is divided by infinity: its gradient is 0.
    chances /= sums.where(counts, torch.inf)
    return chances.scatter_add_(-1, wanted, -counts.to(sums.dtype)).to(products.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product of two matrices to `total` (fp32), which the product itself does on a GPU: no bf16 sum in between."""
    if total.device.type == "cuda" and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b

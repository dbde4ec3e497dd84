"""The training objective: the cross-entropy of the next token."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamactl.model.llama import Llama

# Rows of logits that exist at a time. A larger value gains nothing: 1,024 rows reach full speed on a CPU and on a GPU.
CHUNK = 1024


class NextToken(nn.Module):
    """The model and its loss as one module, so that both can be sharded together.

    The full logits are never stored: with GPT-2's vocabulary those of 16,384 tokens would take 3.3 GB, and their gradient as
    much again.
    """

    def __init__(self, model: Llama) -> None:
        """Wrap a model; the names of the model's own parameters do not change."""
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per token, a scalar in fp32, of `targets` (B T) given `inputs` (B T).

        `dropout` has factors of channels, as `Decoder.forward` takes them.
        """
        return mean_loss(self._hidden(inputs, dropout), self.model.lm_head.weight, targets.flatten())

    @torch.no_grad()
    def per_token(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each target in nats, B T in fp32, without gradients."""
        hidden, wanted = self._hidden(inputs), targets.flatten()
        head = self.model.lm_head.weight.to(hidden.dtype)
        parts = [slice(start, start + CHUNK) for start in range(0, len(wanted), CHUNK)]
        losses = [F.cross_entropy((hidden[part] @ head.mT).float(), wanted[part], reduction="none") for part in parts]
        return torch.cat(losses).view_as(targets)

    def _hidden(self, inputs: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Return the input of the output head, N D with N = B T, in the dtype of autocast where that is enabled."""
        hidden = self.model.hidden(inputs, dropout=dropout).flatten(0, 1)
        device = hidden.device.type
        return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def mean_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats, a scalar in fp32, of `targets` (N) given the logits `hidden` @ `head`.T.

    `hidden` is N D and `head` is V D. Only CHUNK rows of logits exist at a time. `torch.nn.functional.linear_cross_entropy`
    does the same from torch 2.13 on, but returns the loss in bf16 where the products are in bf16, whose neighbouring numbers
    are 0.03 nats apart.
    """
    total: Tensor = _ChunkedSum.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return total / len(targets)


class _ChunkedSum(torch.autograd.Function):
    """The sum of cross-entropies; the forward pass computes the gradients too, so that no logits are kept or computed again.

    It follows Liger's fused loss (Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        weight = head.to(hidden.dtype)
        hidden_gradient, head_gradient = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            rows, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = (rows @ weight.mT).float()
            logits -= logits.amax(-1, keepdim=True)
            loss -= logits.gather(-1, wanted).sum()
            chances = logits.exp_()
            sums = chances.sum(-1, keepdim=True)
            loss += sums.log().sum()
            chances /= sums
            pull = chances.scatter_add_(-1, wanted, -torch.ones_like(sums)).to(hidden.dtype)
            hidden_gradient[start : start + CHUNK] = pull @ weight
            head_gradient += pull.mT @ rows
        ctx.save_for_backward(hidden_gradient, head_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        return hidden_gradient * scale, head_gradient * scale, None

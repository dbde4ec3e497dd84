"""Learn what other models predict, beside the text itself: distillation (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llamactl.model.llama import Llama

TaughtChunk = Callable[[Tensor, Tensor, Sequence[Tensor], float], Tensor]


class Taught(NamedTuple):
    """What teachers make of a micro-batch: the input of each one's head (N D), its head (V D), and their share."""

    hidden: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]
    share: float
    chunk: TaughtChunk

    def compute_logits(self, rows: slice) -> list[Tensor]:
        """Compute the logits of each teacher (rows V)."""
        return [hidden[rows] @ head.mT.to(hidden.dtype) for hidden, head in zip(self.hidden, self.heads, strict=True)]


class Teachers:
    """Models that are not trained, in the format of the products; their mean prediction is a `share` of what is learned."""

    def __init__(self, models: Sequence[Llama], share: float) -> None:
        """Hold the models; `chunk` is `taught_chunk`, or what it is compiled to."""
        self.models, self.share = tuple(models), share
        self.chunk: TaughtChunk = taught_chunk

    @torch.no_grad()
    def read(self, inputs: Tensor, documents: Tensor | None = None) -> Taught:
        """Read token ids (B T), as `Decoder.forward` does."""
        # In bf16 their weights are in the format of the products already.
        cast = self.models[0].lm_head.weight.dtype == torch.bfloat16
        with torch.autocast(inputs.device.type, enabled=False) if cast else nullcontext():
            hidden = tuple(model.hidden(inputs, documents=documents).flatten(0, 1) for model in self.models)
        return Taught(hidden, tuple(model.lm_head.weight for model in self.models), self.share, self.chunk)


def taught_chunk(logits: Tensor, wanted: Tensor, taught: Sequence[Tensor], share: float) -> Tensor:
    """Replace logits (N V) by the gradient of what is learned, and return the sum of the cross-entropies of `wanted` (N 1).

    The gradient is that of the cross-entropy of a mixture: `share` is the mean of what the teachers' logits (N V each)
    predict, the rest is the text. The loss is that of the text alone, so that runs can be compared.
    """
    scores, counts = logits.float(), wanted >= 0
    totals = scores.logsumexp(-1, keepdim=True)
    loss = (totals - scores.gather(-1, wanted.clamp(min=0))).where(counts, 0.0).sum()
    predicted = torch.zeros_like(scores)
    for each in taught:  # one at a time: all of them would take as much memory again as there are teachers
        predicted += F.softmax(each.float(), -1)
    is_wanted = torch.arange(logits.shape[-1], device=logits.device) == wanted
    mixture = share / len(taught) * predicted + (1 - share) * is_wanted
    logits.copy_(((scores - totals).exp() - mixture).where(counts, 0.0))
    return loss

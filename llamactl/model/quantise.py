"""Weights in other formats than they were trained in, for decoding, which takes as long as the weights take to be read."""

import torch
from torch import Tensor, nn

from llamactl.model.llama import Llama

FORMATS = ("f32", "bf16", "int8")
STEPS = 127


class Int8Linear(nn.Module):
    """A product with weights of one byte each and a scale a row (weight-only quantisation); what comes in stays as it is."""

    def __init__(self, linear: nn.Linear) -> None:
        """Round a layer's weights to the nearest of 255 steps up to the largest of their row."""
        super().__init__()
        largest = linear.weight.detach().float().abs().amax(-1).clamp(min=1e-12)
        self.register_buffer("scales", largest / STEPS)
        self.register_buffer("rounded", (linear.weight.detach().float() / (largest / STEPS)[:, None]).round().to(torch.int8))
        self.scales: Tensor
        self.rounded: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """... x D to ... x rows."""
        flat = x.reshape(-1, x.shape[-1])
        product: Tensor = torch._weight_int8pack_mm(flat, self.rounded, self.scales.to(x.dtype))
        return product.view(*x.shape[:-1], -1)


def stored(model: Llama, kind: str) -> Llama:
    """The model with its weights as f32, bf16 or int8; in int8 the embedding and the norms stay as they are."""
    if kind == "bf16":
        return model.to(torch.bfloat16)
    if kind == "int8":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
    return model

"""Weights as decoding wants them: it takes as long as they take to be read, so they are laid out for that, or made smaller."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamactl.model.llama import Llama

FORMATS = ("f32", "bf16", "int8")
STEPS = 127
FEW = 32  # rows up to which PyTorch's product with one-byte weights is quicker than making them bf16 first (measured)


class PackedLinear(nn.Module):
    """A product whose weights are laid out for oneDNN, which reads them twice as fast as MKL does (docs/benchmarks.md).

    The operators are those that torch.compile puts in the place of `linear` on a CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Lay out a layer's weights; raises RuntimeError where that can't be done."""
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1))
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """... x D to ... x rows."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return product


class Int8Linear(nn.Module):
    """A product with weights of one byte each and a scale a row (weight-only quantisation), with what comes in as bf16."""

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
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) <= FEW:
            product = torch._weight_int8pack_mm(rows, self.rounded, torch.ones_like(self.scales, dtype=torch.bfloat16))
        else:
            product = F.linear(rows, self.rounded.to(torch.bfloat16))
        return (product.float() * self.scales).to(x.dtype).view(*x.shape[:-1], -1)


def stored(model: Llama, kind: str) -> Llama:
    """The model, from here on for decoding only, with weights in f32, bf16 or int8; in int8 embedding and norms stay."""
    if kind == "bf16":
        model = model.to(torch.bfloat16)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child) if kind == "int8" else fastest([child])[0])
    return model


def fastest(layers: list[nn.Linear]) -> list[nn.Module]:
    """The layers, packed where that can be done: a trial with the first of them tells."""
    first, x = layers[0], layers[0].weight.detach()[:1]
    if first.weight.device.type != "cpu":
        return list(layers)
    try:
        with torch.inference_mode():
            packs = torch.allclose(PackedLinear(first)(x), first(x), rtol=0.02, atol=0.02)
    except (AttributeError, NotImplementedError, RuntimeError):
        packs = False
    return [PackedLinear(layer) for layer in layers] if packs else list(layers)

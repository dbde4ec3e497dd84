"""Weights for decoding, whose time is dominated by reading them: in a layout that is read faster, or in fewer bits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamactl.model.llama import Llama

FORMATS = ("f32", "bf16", "int8")
STEPS = 127
FEW = 32  # rows of input up to which PyTorch's int8 product is faster than converting the weights to bf16 (measured)


class PackedLinear(nn.Module):
    """A linear layer whose weights are laid out for oneDNN, which reads them twice as fast as MKL does (docs/benchmarks.md).

    It uses the operators that torch.compile substitutes for `linear` on a CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weights of a linear layer; raises RuntimeError where oneDNN is not available."""
        super().__init__()
        self.bias = linear.bias
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1))
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (... x inputs) by the transposed weights; the result is ... x outputs."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per row (weight-only quantisation); its input is cast to bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of a linear layer: 255 symmetric levels up to the row's largest absolute value."""
        super().__init__()
        self.bias = linear.bias
        largest = linear.weight.detach().float().abs().amax(-1).clamp(min=1e-12)
        self.register_buffer("scales", largest / STEPS)
        self.register_buffer("rounded", (linear.weight.detach().float() / (largest / STEPS)[:, None]).round().to(torch.int8))
        self.scales: Tensor
        self.rounded: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (... x inputs) by the transposed weights; the result is ... x outputs in the dtype of x."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) <= FEW:
            product = torch._weight_int8pack_mm(rows, self.rounded, torch.ones_like(self.scales, dtype=torch.bfloat16))
        else:
            product = F.linear(rows, self.rounded.to(torch.bfloat16))
        scaled = product.float() * self.scales
        return (scaled if self.bias is None else scaled + self.bias).to(x.dtype).view(*x.shape[:-1], -1)


def convert_weights(model: Llama, kind: str) -> Llama:
    """Convert the linear layers to f32, bf16 or int8 for decoding and return the model, which cannot be trained afterwards.

    With bf16 the full model is cast. With int8 the embedding and the norms keep their format.
    """
    if kind == "bf16":
        model = model.to(torch.bfloat16)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child) if kind == "int8" else pack_if_faster([child])[0])
    return model


def pack_if_faster(layers: list[nn.Linear]) -> list[nn.Module]:
    """Return the layers packed for oneDNN, or unchanged where a trial with the first layer fails or is not on a CPU."""
    first, x = layers[0], layers[0].weight.detach()[:1]
    if first.weight.device.type != "cpu":
        return list(layers)
    try:
        with torch.inference_mode():
            packs = torch.allclose(PackedLinear(first)(x), first(x), rtol=0.02, atol=0.02)
    except (AttributeError, NotImplementedError, RuntimeError):
        packs = False
    return [PackedLinear(layer) for layer in layers] if packs else list(layers)

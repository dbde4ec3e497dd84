"""Convert a model's weights for decoding, whose time is dominated by reading them: to fewer bits, or to a faster layout."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llamactl.model.llama import Llama
from llamactl.model.native_step import runs_natively
from llamactl.model.quantize import Int4Linear, Int8Linear

FORMATS = ("f32", "bf16", "int8", "int4")
QUANTIZED = {"int8": Int8Linear, "int4": Int4Linear}


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


def convert_weights(model: Llama, kind: str) -> Llama:
    """Convert the linear layers to f32, bf16, int8 or int4 for decoding and return the model, which cannot be trained then.

    With bf16 the full model is cast. With int8 and int4 the embedding and the norms keep their format.
    """
    if kind == "bf16":
        model = model.to(torch.bfloat16)
    if kind in QUANTIZED:
        _replace_linear(model, QUANTIZED[kind])
    elif not runs_natively(model):  # the native step reads the weights as they are
        _replace_linear(model, lambda linear: pack_if_faster([linear])[0])
    return model


def _replace_linear(model: Llama, replace: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace each linear layer of a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, replace(child))


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

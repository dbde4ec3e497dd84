"""Linear layers with weights of fewer bits, for decoding, whose time is dominated by reading them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 127
FEW = 32  # rows of input up to which PyTorch's int8 product is faster than converting the weights to bf16 (measured)
GROUP = 32  # weights that share a scale in int4
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # scales to try in int4, as a part of the one that reaches the largest weight


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

    def dequantize(self) -> Tensor:
        """Return the weights in fp32, outputs x inputs."""
        return self.rounded.float() * self.scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (... x inputs) by the transposed weights; the result is ... x outputs in the dtype of x."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) <= FEW:
            product = torch._weight_int8pack_mm(rows, self.rounded, torch.ones_like(self.scales, dtype=torch.bfloat16))
        else:
            product = F.linear(rows, self.rounded.to(torch.bfloat16))
        scaled = product.float() * self.scales
        return (scaled if self.bias is None else scaled + self.bias).to(x.dtype).view(*x.shape[:-1], -1)


class Int4Linear(nn.Module):
    """A linear layer with int4 weights and a bf16 scale per group of 32 inputs: 4.5 bits per weight (weight-only)."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of a linear layer to -8 ... 7 times a scale that has the least square error in its group."""
        super().__init__()
        self.bias, self.in_features = linear.bias, linear.in_features
        weight = F.pad(linear.weight.detach().float(), (0, -linear.in_features % GROUP)).view(linear.out_features, -1, GROUP)
        parts = [
            _quantize_int4(rows) for rows in torch.split(weight, 4096)
        ]  # what is kept for a search of all rows at once is large
        rounded, scales = (torch.cat(part) for part in zip(*parts, strict=True))
        # As in llama.cpp's Q4_0: the first half of a group is in the low bits of its bytes. Two's complement.
        low, high = rounded.view(torch.uint8).chunk(2, dim=-1)
        self.register_buffer("packed", ((low & 15) | (high << 4)).flatten(1))
        self.register_buffer("scales", scales)
        self.packed: Tensor
        self.scales: Tensor

    def dequantize(self) -> Tensor:
        """Return the weights in fp32, outputs x inputs."""
        packed = self.packed.view(torch.int8).view(len(self.packed), -1, GROUP // 2)
        signed = torch.cat([(packed << 4) >> 4, packed >> 4], dim=-1)
        return (signed * self.scales.float()[:, :, None]).flatten(1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (... x inputs) by the transposed weights; the result is ... x outputs in the dtype of x."""
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)


def _quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise groups of weights (outputs x groups x 32) to int8 from -8 to 7; return them and their scales in bf16."""
    # The weight that is farthest from zero becomes -8, whatever its sign: there is one more level on that side.
    extreme = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    least = torch.full_like(extreme, torch.inf)
    scales, rounded = torch.zeros_like(extreme), torch.zeros_like(weight)
    for shrink in SHRINKS:
        scale = (extreme * shrink / -8).to(torch.bfloat16).float()
        levels = (weight / scale.where(scale != 0, 1.0)).round_().clamp_(-8, 7)
        error = (levels * scale - weight).square().sum(-1, keepdim=True)
        better = error < least
        least, scales, rounded = error.where(better, least), scale.where(better, scales), levels.where(better, rounded)
    return rounded.to(torch.int8), scales[:, :, 0].to(torch.bfloat16)

"""Keys and values of the positions so far, in buffers whose shape never changes."""

import torch
from torch import Tensor

from llamactl.config import ModelConfig


class KVCache:
    """An argument of the model, not a part of it: whoever decodes owns one."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Room for `batch` sequences of the model's whole context."""
        shape = (config.layers, batch, config.kv_heads, config.context, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def update(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B K T E) at `positions` (T); give back all of the layer's, B K S E."""
        self.keys[layer].index_copy_(2, positions, k.to(self.keys.dtype))
        self.values[layer].index_copy_(2, positions, v.to(self.values.dtype))
        return self.keys[layer].to(k.dtype), self.values[layer].to(v.dtype)

    def visible(self, positions: Tensor) -> Tensor:
        """Which of the S stored positions each of T new ones may see, T S."""
        return torch.arange(self.keys.shape[3], device=positions.device) <= positions[:, None]

"""Keys and values of the positions so far, in buffers whose shape never changes."""

from typing import NamedTuple

import torch
from torch import Tensor

from llamactl.config import ModelConfig


class LayerCache(NamedTuple):
    """What one layer has seen, both B K S E."""

    keys: Tensor
    values: Tensor

    def update(self, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B K T E) at `positions` (T); give back all that is stored, B K S E."""
        self.keys.index_copy_(2, positions, k.to(self.keys.dtype))
        self.values.index_copy_(2, positions, v.to(self.values.dtype))
        return self.keys.to(k.dtype), self.values.to(v.dtype)

    def visible(self, positions: Tensor) -> Tensor:
        """Which of the S stored positions each of T new ones may see, T S."""
        return torch.arange(self.keys.shape[2], device=positions.device) <= positions[:, None]


class KVCache:
    """An argument of the model, not a part of it: whoever decodes owns one."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Room for `batch` sequences of the model's whole context."""
        shape = (batch, config.kv_heads, config.context, config.head_width)
        pairs = [[torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(config.layers)]
        self.layers = [LayerCache(*pair) for pair in pairs]

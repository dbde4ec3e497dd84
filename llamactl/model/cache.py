"""Keys and values of the positions so far, in buffers that are made once."""

import torch
from torch import Tensor

from llamactl.config import ModelConfig


class LayerCache:
    """What one layer has seen: keys and values, both B K S E, of which `length` positions are filled."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Start with nothing seen."""
        self.keys, self.values, self.length = keys, values, 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B K T E) after what is stored; give back all of it."""
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length].to(k.dtype), self.values[:, :, : self.length].to(v.dtype)


class KVCache:
    """An argument of the model, not a part of it: whoever decodes owns one."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Room for `batch` sequences of the model's whole context. The first `padding` (B) tokens of each say nothing."""
        shape = (batch, config.kv_heads, config.context, config.head_width)
        pairs = [[torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(config.layers)]
        self.layers = [LayerCache(*pair) for pair in pairs]
        self.padding: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions that are filled."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget everything."""
        for layer in self.layers:
            layer.length = 0

    def mask(self, new: int, device: torch.device) -> Tensor | None:
        """Which positions each of `new` ones may see, B 1 T S; None where it is all those up to itself.

        A token that says nothing sees itself, as a softmax over nothing has no value.
        """
        if self.padding is None and (new == 1 or self.length == 0):
            return None
        stored = torch.arange(self.length + new, device=device)
        own = stored[self.length :, None]
        visible = (stored <= own)[None, None]
        if self.padding is not None:
            visible = (visible & (stored >= self.padding[:, None, None, None])) | (stored == own)
        return visible

"""The key/value cache for decoding: keys and values of all positions so far, in buffers that are allocated once."""

import torch
from torch import Tensor

from llamactl.config.schema import ModelConfig


class LayerCache:
    """The key/value cache of one layer: keys and values, both B K S E, of which the first `length` positions are filled."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Create an empty cache that stores into the buffers `keys` and `values`, both B K S E."""
        self.keys, self.values, self.length = keys, values, 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B K T E) to the cache and return all its keys and values (B K S E), in the dtypes of k and v."""
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length].to(k.dtype), self.values[:, :, : self.length].to(v.dtype)


class KVCache:
    """The key/value caches of all layers. It is passed to the model as an argument and belongs to the caller that decodes."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Allocate the buffers for `batch` sequences of the model's full context."""
        shape = (batch, config.n_kv_heads, config.context, config.head_dim)
        pairs = [[torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(config.n_layers)]
        self.layers = [LayerCache(*pair) for pair in pairs]

    @property
    def length(self) -> int:
        """Return the number of positions that are filled."""
        return self.layers[0].length

    def clear(self) -> None:
        """Empty the cache; the buffers stay allocated."""
        for layer in self.layers:
            layer.length = 0

    def mask(self, new: int, device: torch.device) -> Tensor | None:
        """Return the attention mask of `new` tokens over all S positions (bool, 1 1 T S), True where a token may attend.

        Returns None when the cache is empty or there is one new token: plain causal attention is then correct.
        """
        if new == 1 or self.length == 0:
            return None
        stored = torch.arange(self.length + new, device=device)
        return (stored <= stored[self.length :, None])[None, None]

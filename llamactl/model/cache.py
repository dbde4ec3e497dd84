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


class FixedLayerCache(LayerCache):
    """The same buffers, used with one shape at every position, as a CUDA graph needs it; `position` is where to store."""

    def __init__(self, layer: LayerCache, position: Tensor) -> None:
        """Use the buffers of a layer; `position` (1, int64) is on the device and changes from step to step."""
        super().__init__(layer.keys, layer.values)
        self.position = position

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B K 1 E) and return keys and values of all positions (B K S E); a mask leaves out the later ones."""
        self.keys.index_copy_(2, self.position, k.to(self.keys.dtype))
        self.values.index_copy_(2, self.position, v.to(self.values.dtype))
        return self.keys.to(k.dtype), self.values.to(v.dtype)


class KVCache:
    """The key/value caches of all layers. It is passed to the model as an argument and belongs to the caller that decodes."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Allocate the buffers for `batch` sequences of the model's full context."""
        shape = (batch, config.n_kv_heads, config.context, config.head_dim)
        pairs = [[torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(config.n_layers)]
        self.layers: list[LayerCache] = [LayerCache(*pair) for pair in pairs]

    @property
    def length(self) -> int:
        """Return the number of positions that are filled."""
        return self.layers[0].length

    @length.setter
    def length(self, length: int) -> None:
        for layer in self.layers:
            layer.length = length

    def clear(self) -> None:
        """Empty the cache; the buffers stay allocated."""
        self.length = 0

    def next_positions(self, new: int, device: torch.device) -> Tensor:
        """Return the positions of `new` tokens, which follow those in the cache (int64, T)."""
        return torch.arange(self.length, self.length + new, device=device)

    def mask(self, new: int, device: torch.device) -> Tensor | None:
        """Return the attention mask of `new` tokens over all S positions (bool, 1 1 T S), True where a token may attend.

        Returns None when the cache is empty or there is one new token: plain causal attention is then correct.
        """
        if new == 1 or self.length == 0:
            return None
        stored = torch.arange(self.length + new, device=device)
        return (stored <= stored[self.length :, None])[None, None]


class FixedCache(KVCache):
    """The buffers of a cache, used with one shape at every position: a step of one token is the same work each time."""

    def __init__(self, cache: KVCache) -> None:
        """Use the buffers of a cache; `position` says where the next token stands."""
        self.position = torch.zeros(1, dtype=torch.int64, device=cache.layers[0].keys.device)
        self.layers = [FixedLayerCache(layer, self.position) for layer in cache.layers]

    def next_positions(self, new: int, device: torch.device) -> Tensor:
        """Return the position of the new token."""
        return self.position

    def mask(self, new: int, device: torch.device) -> Tensor:
        """Return the mask of all positions of the buffers (bool, S): those up to the new token."""
        return torch.arange(self.layers[0].keys.shape[2], device=device) <= self.position

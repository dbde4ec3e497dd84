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


class RowsLayerCache(LayerCache):
    """Rows of the same buffers, each with a position of its own (R, int64) where its new token is stored."""

    def __init__(self, layer: LayerCache, rows: Tensor, positions: Tensor, longest: int) -> None:
        """Use some rows (R, int64) of the buffers of a layer, and of each the first `longest` positions."""
        super().__init__(layer.keys, layer.values)
        self.rows, self.positions, self.longest = rows, positions, longest
        self.has_all = len(rows) == len(layer.keys)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (R K 1 E) and return the keys and values of the rows (R K S E); a mask hides the later positions."""
        return self._store(self.keys, k), self._store(self.values, v)

    def _store(self, buffer: Tensor, new: Tensor) -> Tensor:
        buffer[self.rows, :, self.positions] = new[:, :, 0].to(buffer.dtype)
        filled = buffer[:, :, : self.longest]
        return (filled if self.has_all else filled[self.rows]).to(new.dtype)


class KVCache:
    """The key/value caches of all layers. It is passed to the model as an argument and belongs to the caller that decodes."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        """Allocate the buffers for `batch` sequences of the model's full context."""
        shape = (batch, config.n_kv_heads, config.context, config.head_dim)
        pairs = [[torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)] for _ in range(config.n_layers)]
        self.layers: list[LayerCache] = [LayerCache(*pair) for pair in pairs]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of the buffers for each sequence."""
        return sum(each[0].nbytes for layer in self.layers for each in (layer.keys, layer.values))

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


class RowCache(KVCache):
    """One row of a cache as a cache of its own, empty, which shares the buffers."""

    def __init__(self, cache: KVCache, row: int) -> None:
        """Use the buffers of a row of a cache."""
        self.layers = [LayerCache(layer.keys[row : row + 1], layer.values[row : row + 1]) for layer in cache.layers]

    def copy_from(self, other: KVCache) -> None:
        """Take the keys and values of another row."""
        for own, held in zip(self.layers, other.layers, strict=True):
            own.keys[:, :, : held.length] = held.keys[:, :, : held.length]
            own.values[:, :, : held.length] = held.values[:, :, : held.length]
        self.length = other.length


class RowsCache(KVCache):
    """Rows of a cache, for a step of one token each: they may hold texts of different lengths.

    With all rows and all positions a step is the same work each time, whatever the positions are, as a CUDA graph needs it.
    """

    def __init__(self, cache: KVCache, rows: Tensor, positions: Tensor, longest: int) -> None:
        """Use some rows (R, int64), in order, of the buffers of a cache: each's new token has a position (R, int64).

        `longest` positions of each row are read, more than the largest of `positions`.
        """
        self.positions, self.longest = positions, longest
        self.layers = [RowsLayerCache(layer, rows, positions, longest) for layer in cache.layers]

    def next_positions(self, new: int, device: torch.device) -> Tensor:
        """Return the position of each row's new token (R 1 1, int64): the rows are no longer at the same one."""
        return self.positions[:, None, None]

    def mask(self, new: int, device: torch.device) -> Tensor:
        """Return the mask of the positions of each row (bool, R 1 1 S): those up to its new token."""
        return (torch.arange(self.longest, device=device) <= self.positions[:, None])[:, None, None]

"""Tokens become batches: batch k is a pure function of (dataset, seed, k).

There is no loader state: resuming at step 10 or 10,000,000 costs the same, and the order depends neither on
processes nor on the micro-batch. Each window is seen exactly once an epoch.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamactl.mapping import Shards

ROUNDS = 4


class Batch(NamedTuple):
    """Windows of tokens, and for each token the one that follows it; both B T, int64.

    `share` is how much of a step they are: nothing, where a process has no window left but the others still have.
    """

    inputs: Tensor
    targets: Tensor
    share: float = 1.0


class Windows:
    """Shards cut into windows of `context` tokens and their successors, numbered through."""

    def __init__(self, shards: Sequence[np.ndarray], context: int) -> None:
        """Windows do not cross shards; what is left at a shard's end is not used."""
        self._shards, self.context = shards, context
        lengths = shards.lengths if isinstance(shards, Shards) else map(len, shards)  # known, without a file being read
        self._ends = np.cumsum([max(0, length - 1) // context for length in lengths], dtype=np.int64)

    def __len__(self) -> int:
        """How many there are."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, numbers: np.ndarray) -> Batch:
        """The windows of some numbers."""
        rows = torch.from_numpy(np.stack([self._window(int(number)) for number in numbers]).astype(np.int64))
        return Batch(rows[:, :-1], rows[:, 1:])

    def _window(self, number: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        start = (number - (int(self._ends[shard - 1]) if shard else 0)) * self.context
        window: np.ndarray = self._shards[shard][start : start + self.context + 1]
        return window


def shuffled(places: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where a keyed permutation of range(size) puts each place: a Feistel network with cycle walking.

    A bijection that needs no table (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype=np.uint64)
    found = _feistel(places.astype(np.uint64), half, keys)
    while (outside := found >= size).any():
        found[outside] = _feistel(found[outside], half, keys)
    return found.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as intended
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << np.uint64(half)) | right


class Batches:
    """The training batches of one process out of `size`."""

    def __init__(self, windows: Windows, per_step: int, key: str, rank: int = 0, size: int = 1) -> None:
        """`per_step` windows make a step, in an order that `key` (dataset and seed) decides."""
        self._windows, self._per_step, self._key = windows, per_step, key
        self._rank, self._size = rank, size

    def numbers(self, step: int) -> np.ndarray:
        """The windows of a step, over all processes; epochs follow one another without a seam."""
        total = len(self._windows)
        places = np.arange(step * self._per_step, (step + 1) * self._per_step, dtype=np.int64)
        epochs = places // total
        order = [shuffled(places[epochs == epoch] % total, total, f"{self._key} {epoch}") for epoch in np.unique(epochs)]
        return np.concatenate(order)

    def mine(self, step: int) -> np.ndarray:
        """The windows of a step that are this process's."""
        return self.numbers(step)[self._rank :: self._size]

    def micro(self, step: int, most: int) -> list[Batch]:
        """Its share of a step in micro-batches of at most `most` windows, as many of them as any other process has."""
        mine = self.mine(step)
        largest = -(-self._per_step // self._size)
        parts = [mine[start : start + most] for start in range(0, largest, most)]
        return [self._batch(part) if len(part) else self._batch(np.zeros(1, np.int64), 0.0) for part in parts]

    def _batch(self, numbers: np.ndarray, counts: float = 1.0) -> Batch:
        return self._windows.batch(numbers)._replace(share=counts * len(numbers) / self._per_step)

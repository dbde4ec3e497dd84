"""Batches of token windows: batch k is a pure function of (dataset, seed, k).

There is no loader state: resuming at step 10 or 10,000,000 costs the same, and the order depends neither on the number of
processes nor on the micro-batch size. Each window is used exactly once per epoch; from the second epoch on all begin elsewhere.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamactl.corpus.memmap import read_tokens, shard_lengths
from llamactl.corpus.targets import EVERY_TARGET, WindowRule

# Four rounds are the usual minimum of a Feistel network (Luby & Rackoff 1988).
ROUNDS = 4


class Batch(NamedTuple):
    """Windows of tokens and, for each token, the one that follows it; both (B, T) int64.

    Weighted by `share`, the means of a step's micro-batches add up to the mean over the targets that count in the step: 0 for
    the placeholder of a process that has no window left while others do. `dropout` has seeds for each window
    (`training/dropout.py`). `documents` (N+1, int32) are the places in the windows, laid one after
    another, where documents begin that do not see one another, and the end; None where all do.
    """

    inputs: Tensor
    targets: Tensor
    share: float | Tensor = 1.0
    dropout: Tensor | None = None
    documents: Tensor | None = None


class Windows:
    """Shards cut into consecutive windows of `context` tokens and their targets, numbered from 0."""

    def __init__(self, shards: Sequence[np.ndarray], context: int, rule: WindowRule = EVERY_TARGET) -> None:
        """Count the windows of each shard; windows do not cross shards, so the end of a shard may be unused.

        `rule` says which targets count and which documents are separate; by default all do and none is.
        """
        self._shards, self.context, self.rule = shards, context, rule
        self._lengths = shard_lengths(shards)
        self._ends = np.cumsum([max(0, length - 1) // context for length in self._lengths], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, numbers: np.ndarray, offsets: Iterable[int] = repeat(0)) -> Batch:
        """Read the windows with these numbers, each moved on by so many tokens.

        Raises DataError when a shard has changed since it was opened.
        """
        windows = [self._window(int(number), int(offset)) for number, offset in zip(numbers, offsets, strict=False)]
        rows = np.stack(windows).astype(np.int64)
        documents = self.rule.documents(rows[:, :-1])
        return Batch(
            torch.from_numpy(rows)[:, :-1],
            torch.from_numpy(self.rule.targets(rows)),
            documents=None if documents is None else torch.from_numpy(documents),
        )

    def _window(self, number: int, offset: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        start = (number - (int(self._ends[shard - 1]) if shard else 0)) * self.context + offset
        # The last window of a shard has no room to move on as far as the others do.
        start = min(start, self._lengths[shard] - self.context - 1)
        return read_tokens(self._shards, shard, start, start + self.context + 1)

    def rest(self) -> np.ndarray:
        """Read the tokens after the last window of the last shard, preceded by that window's last token."""
        last = len(self._lengths) - 1
        used = int(np.diff(self._ends, prepend=0)[last]) * self.context
        return read_tokens(self._shards, last, used, self._lengths[last])


def permuted_index(places: np.ndarray, size: int, key: str) -> np.ndarray:
    """Map positions through a keyed permutation of range(size): a Feistel network with cycle walking.

    It is a bijection that needs no table (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    if size < 1:
        raise ValueError("An empty range can't be permuted.")
    # The network permutes 2 * half bits: less than four times `size`, so the walk below ends after a few tries.
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype=np.uint64)
    result = _feistel(places.astype(np.uint64), half, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], half, keys)
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        # The round function mixes with the constants of SplitMix64.
        mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as intended
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << np.uint64(half)) | right


class Batches:
    """The training batches of process `rank` out of `size`."""

    def __init__(self, windows: Windows, per_step: int, key: str, rank: int = 0, size: int = 1) -> None:
        """Take `per_step` windows for each step, in an order that `key` (dataset and seed) decides."""
        self._windows, self._per_step, self._key = windows, per_step, key
        self._rank, self._size = rank, size

    def window_ids(self, step: int) -> np.ndarray:
        """Return the windows of a step over all processes; a step may span the end of an epoch and the next one."""
        total, (positions, epochs) = len(self._windows), self._positions(step)
        # The key contains the epoch, so that each epoch has an order of its own.
        order = [
            permuted_index(positions[epochs == epoch] % total, total, f"{self._key} {epoch}") for epoch in np.unique(epochs)
        ]
        return np.concatenate(order)

    def window_offsets(self, step: int) -> np.ndarray:
        """Return by how many tokens each window of a step is moved on: another number in each epoch, 0 in the first.

        So a text that is read again is cut elsewhere, and its tokens have other contexts: docs/recipe.md. Rows are not.
        """
        if self._windows.rule.rows:
            return np.zeros(self._per_step, dtype=np.int64)
        return np.array([self._offset(int(epoch)) for epoch in self._positions(step)[1]])

    def _offset(self, epoch: int) -> int:
        digest = hashlib.blake2b(f"{self._key} {epoch} offset".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self._windows.context if epoch else 0

    def _positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of a step's windows in the order of the run, and the epoch of each."""
        positions = np.arange(step * self._per_step, (step + 1) * self._per_step, dtype=np.int64)
        return positions, positions // len(self._windows)

    def rank_places(self, step: int) -> np.ndarray:
        """Return the places in the run, counted in windows, of this process's windows of a step."""
        return self._positions(step)[0][self._rank :: self._size]

    def rank_window_ids(self, step: int) -> np.ndarray:
        """Return the windows of a step that belong to this process."""
        return self.window_ids(step)[self._rank :: self._size]

    def micro_batches(self, step: int, most: int) -> list[Batch]:
        """Read this process's part of a step in micro-batches of up to `most` windows, as many of them as other processes."""
        local, offsets = self.rank_window_ids(step), self.window_offsets(step)[self._rank :: self._size]
        # Collective operations need every process in each micro-batch: one without a window left reads window 0, with weight 0.
        largest = -(-self._per_step // self._size)
        parts = [slice(start, start + most) for start in range(0, largest, most)]
        counted = self._counted_targets(step)
        return [self._batch(local[part], offsets[part], counted) for part in parts]

    def _counted_targets(self, step: int) -> int:
        """Count the targets of a step that the loss counts, over all processes."""
        if not self._windows.rule.ignores:
            return self._per_step * self._windows.context
        targets = self._windows.batch(self.window_ids(step), self.window_offsets(step)).targets
        return max(1, int((targets >= 0).sum()))

    def _batch(self, numbers: np.ndarray, offsets: np.ndarray, counted: int) -> Batch:
        read = self._windows.batch(numbers, offsets) if len(numbers) else self._windows.batch(np.zeros(1, np.int64))
        return read._replace(share=len(numbers) * self._windows.context / counted)

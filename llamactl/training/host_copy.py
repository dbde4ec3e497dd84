"""Copy the tensors of a checkpoint to main memory, where training does not change them while they are written."""

from contextlib import suppress

import torch
from torch import Tensor

from llamactl.checkpoint.snapshot import Snapshot
from llamactl.planning.memory import free_main_memory


class HostCopies:
    """Copies of snapshots, one at a time; those of a GPU in pinned memory, to which it copies at full speed."""

    def __init__(self) -> None:
        """Start without memory."""
        # Kept for the next snapshot: drivers take seconds to pin gigabytes.
        self._pinned: Snapshot | None = None

    def copy_to_host(self, snapshot: Snapshot) -> Snapshot | None:
        """Copy a snapshot, once the copy before is no longer in use; return None if that leaves too little memory free."""
        if not (self._pinned and _names(self._pinned) == _names(snapshot)):
            self._pinned = self._allocate_pinned(snapshot)
        if self._pinned:
            _copy(snapshot, self._pinned)
            torch.cuda.synchronize()
            return self._pinned
        # The copy must leave as much memory free as it takes.
        if 2 * snapshot.nbytes >= free_main_memory():
            return None
        copy = _allocate(snapshot, pinned=False)
        _copy(snapshot, copy)
        return copy

    def _allocate_pinned(self, snapshot: Snapshot) -> Snapshot | None:
        """Allocate pinned memory for the tensors of a GPU; None for those of other devices, or where memory is short."""
        # PyTorch rounds each tensor up to a power of two, at most twice its size.
        if any(tensor.is_cuda for tensor in snapshot.weights.values()) and 4 * snapshot.nbytes < free_main_memory():
            with suppress(RuntimeError):  # the driver pins less than there is
                return _allocate(snapshot, pinned=True)
        return None


def _names(snapshot: Snapshot) -> list[list[str]]:
    """List what a snapshot has: in one run tensors of a name have one shape."""
    return [list(tensors) for tensors in snapshot]


def _allocate(snapshot: Snapshot, pinned: bool) -> Snapshot:
    def like(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.empty_like(tensor, device="cpu", pin_memory=pinned) for name, tensor in tensors.items()}

    return Snapshot(like(snapshot.weights), like(snapshot.optimizer))


def _copy(snapshot: Snapshot, into: Snapshot) -> None:
    for tensors, held in zip(snapshot, into, strict=True):
        for name, tensor in tensors.items():
            held[name].copy_(tensor, non_blocking=held[name].is_pinned())

"""Gather, shard and copy DTensors in bounded memory; plain tensors pass unchanged."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T", bound=Tensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, or a plain tensor unchanged."""
    return cast("DTensor", tensor).to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank, a collective call; return a plain tensor unchanged."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def gather_rows(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the rows of a tensor, part by part, on rank 0; a collective call that yields nothing on other ranks.

    Each part reuses the memory of the previous one, so rank 0 holds its own part and one more. gloo's `gather` would hold
    the tensor twice there, and `full_tensor` on every rank. Copy a part to keep it.
    """
    if not is_sharded(tensor):
        yield tensor
        return
    part = cast("DTensor", tensor)
    mesh, dim = part.device_mesh, _shard_dim(part)
    coordinates = [mesh.get_local_rank(number) for number in range(mesh.ndim)]
    shard = coordinates.pop(dim)
    # Replicas are equal: only the first one sends its rows.
    if any(coordinates):
        return
    local, group = part.to_local(), mesh.get_group(dim)
    if shard == 0:
        yield local
        yield from _receive_rows(part, torch.empty_like(local), group)
    elif len(local):
        _transfer(dist.isend, local.contiguous(), 0, group)


def _receive_rows(part: "DTensor", buffer: Tensor, group: "dist.ProcessGroup") -> Iterator[Tensor]:
    """Receive the rows of each other rank of a group into `buffer`; ranks without rows send nothing."""
    for source in range(1, group.size()):
        rows = buffer[: len(_row_range(part, source))]
        if len(rows):
            _transfer(dist.irecv, rows, source, group)
            yield rows


def _transfer(operation: Callable[..., Any], rows: Tensor, peer: int, group: "dist.ProcessGroup") -> None:
    """Send rows to a peer, or receive them, and wait until that is done."""
    # As a batch of one: otherwise NCCL opens new channels for each pair of ranks.
    for work in dist.batch_isend_irecv([dist.P2POp(operation, rows, group=group, group_peer=peer)]):
        work.wait()
    if rows.is_cuda:
        # NCCL aborts after ten minutes in its queue. Wait here, so that one part waits for the disk at a time, not all.
        torch.cuda.synchronize(rows.device)


def _shard_dim(part: "DTensor") -> int:
    """Return the mesh dimension over which the rows of a tensor are sharded."""
    return next(number for number, placement in enumerate(part.placements) if placement.is_shard())


def _row_range(part: "DTensor", shard: int) -> range:
    """Return the rows of the full tensor in a shard."""
    # As torch.chunk does it: the last shards may have fewer rows, or none.
    length = len(part)
    chunk = -(-length // part.device_mesh.size(_shard_dim(part)))
    return range(min(shard * chunk, length), min((shard + 1) * chunk, length))


def _local_rows(full: Tensor, like: Tensor) -> Tensor:
    """Select the rows of a full tensor that belong to this rank."""
    part = cast("DTensor", like)
    rows = _row_range(part, part.device_mesh.get_local_rank(_shard_dim(part)))
    return full[rows.start : rows.stop]


def is_sharded(tensor: Tensor) -> bool:
    """Check whether a tensor is a DTensor."""
    # Not isinstance: importing DTensor is slow, and most processes have none.
    return hasattr(tensor, "placements")


def split_sharded(tensors: Iterable[T]) -> tuple[list[T], list[T]]:
    """Split tensors into sharded and plain ones: PyTorch's operators on lists don't take both together."""
    known = list(tensors)
    return [each for each in known if is_sharded(each)], [each for each in known if not is_sharded(each)]


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """Copy a full tensor to the device of `like`, sharded as `like` is."""
    if not is_sharded(like):
        return full.to(like.device, copy=True)
    from torch.distributed.tensor import DTensor

    parameter = cast("DTensor", like)
    rows = _local_rows(full, parameter).to(like.device, copy=True)
    mesh, placements = parameter.device_mesh, parameter.placements
    # Without run_check, which would be a collective call per tensor.
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=full.shape, stride=full.stride())


@torch.no_grad()
def copy_into(target: Tensor, full: Tensor) -> None:
    """Copy a full tensor into a parameter; into a sharded one, this rank's rows."""
    local_shard(target).copy_(_local_rows(full, target) if is_sharded(target) else full)

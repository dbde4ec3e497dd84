"""Tensors on disk: safetensors files, written a tensor at a time and read by the library of that name."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llamactl.errors import BadData

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
ALIGNMENT = 8  # bytes


def parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, the same as the library's own, without a second copy of them in memory.

    A header's length in 8 bytes, a JSON header, then the tensors: the widest numbers first, so that all are aligned
    (huggingface.co/docs/safetensors). Sharded ones are gathered a part at a time, so that all processes must walk together.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + size(tensors[name])
        described = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = described
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % ALIGNMENT)
    yield len(written).to_bytes(8, "little") + written
    for name in names:
        yield from map(_memory, pieces(tensors[name]))  # holds on to no piece while the next is on its way


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in main memory."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def split(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most `most` bytes, in their order; one that is larger is a group of its own.

    As huggingface_hub's `split_torch_state_dict_into_shards` does it, so that files are the same as transformers'.
    """
    groups: list[dict[str, Tensor]] = []
    open_group: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if size(tensor) > most:
            groups.append({name: tensor})
            continue
        if sum(map(size, open_group.values())) + size(tensor) > most:
            groups.append(open_group)
            open_group = {}
        open_group[name] = tensor
    return [*groups, open_group] if open_group or not groups else groups


def size(tensor: Tensor) -> int:
    """The bytes of a tensor, all of it."""
    return tensor.numel() * tensor.element_size()


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """What is in a file, from its header; raises BadData that names it."""
    with _reading(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def each(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one at a time; raises BadData that names it.

    The file is mapped anew for each, as what was read of a mapping stays in memory with it.
    """
    for name in shapes(path):
        with _reading(path) as file:
            yield name, file.get_tensor(name)


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; raises BadData that names it."""
    with _reading(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BadData(f"{path} is damaged.", str(error)) from error


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its part of one that is sharded, all of any other."""
    return cast("DTensor", tensor).to_local() if sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one that is sharded its processes must ask together."""
    return cast("DTensor", tensor).full_tensor() if sharded(tensor) else tensor


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The rows of a tensor, on the first of the processes that hold parts of them; the others send theirs and get nothing.

    One part at a time, in the memory that the one before was in, so that the first process holds its own and one other:
    gloo's `gather` holds a tensor twice there, and `full_tensor` twice everywhere.
    """
    if not sharded(tensor):
        yield tensor
        return
    part = cast("DTensor", tensor)
    mesh, place = part.device_mesh, _place(part)
    coordinates = [mesh.get_local_rank(number) for number in range(mesh.ndim)]
    own = coordinates.pop(place)
    if any(coordinates):
        return  # another copy, of which the first has its own
    mine, group = part.to_local(), mesh.get_group(place)
    if own == 0:
        yield mine
        yield from _received(part, torch.empty_like(mine), group)
    elif len(mine):
        _exchanged(dist.isend, mine.contiguous(), 0, group)


def _received(part: "DTensor", room: Tensor, group: "dist.ProcessGroup") -> Iterator[Tensor]:
    """The rows of the other processes of a group; those that have none send nothing."""
    for source in range(1, group.size()):
        rows = room[: len(_rows(part, source))]
        if len(rows):
            _exchanged(dist.irecv, rows, source, group)
            yield rows


def _exchanged(way: Callable[..., Any], rows: Tensor, peer: int, group: "dist.ProcessGroup") -> None:
    """Send or receive, and wait. It is a batch, as NCCL else opens new channels for each pair of processes."""
    for work in dist.batch_isend_irecv([dist.P2POp(way, rows, group=group, group_peer=peer)]):
        work.wait()
    if rows.is_cuda:
        # NCCL ends a run for what is in its queue for ten minutes: there waits one tensor for the disk, not all of them.
        torch.cuda.synchronize(rows.device)


def _place(part: "DTensor") -> int:
    """The dimension of a mesh over which a tensor's rows are dealt out."""
    return next(number for number, placement in enumerate(part.placements) if placement.is_shard())


def _rows(part: "DTensor", place: int) -> range:
    """The rows of the whole that a process has: as many as every other, but for the last ones."""
    length = len(part)
    most = -(-length // part.device_mesh.size(_place(part)))
    return range(min(place * most, length), min((place + 1) * most, length))


def _own_rows(full: Tensor, like: Tensor) -> Tensor:
    """Those rows of a whole tensor that this process has of one that is laid out in parts."""
    part = cast("DTensor", like)
    rows = _rows(part, part.device_mesh.get_local_rank(_place(part)))
    return full[rows.start : rows.stop]


def sharded(tensor: Tensor) -> bool:
    """Whether processes hold parts of it: a DTensor, whose module takes long to import."""
    return hasattr(tensor, "placements")


def placed(full: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, laid out as a parameter is."""
    if not sharded(like):
        return full.to(like.device, copy=True)
    from torch.distributed.tensor import DTensor

    parameter = cast("DTensor", like)
    rows = _own_rows(full, parameter).to(like.device, copy=True)
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=full.shape, stride=full.stride())


@torch.no_grad()
def put(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into a parameter, or the part of it that is here."""
    local(target).copy_(_own_rows(full, target) if sharded(target) else full)

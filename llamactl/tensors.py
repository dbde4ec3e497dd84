"""Tensors on disk: safetensors files, written a tensor at a time and read by the library of that name."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
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
    (huggingface.co/docs/safetensors). Sharded ones are gathered one at a time, so that all processes must walk together.
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
        for piece in pieces(tensors[name]):
            yield piece.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def split(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most `most` bytes, or of one that is larger, in their order."""
    groups: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if groups[-1] and sum(map(size, groups[-1].values())) + size(tensor) > most:
            groups.append({})
        groups[-1][name] = tensor
    return groups


def size(tensor: Tensor) -> int:
    """The bytes of a tensor, all of it."""
    return tensor.numel() * tensor.element_size()


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """What is in a file, from its header; raises BadData that names it."""
    with _reading(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def each(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one at a time; raises BadData that names it."""
    with _reading(path) as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; raises BadData that names it."""
    return dict(each(path))


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

    Not `whole`: where gloo gathers for all, each process holds the tensor twice.
    """
    if not sharded(tensor):
        yield tensor
        return
    import torch.distributed as dist

    part, mesh = cast("DTensor", tensor), cast("DTensor", tensor).device_mesh
    place = next(number for number, placement in enumerate(part.placements) if placement.is_shard())
    coordinates = [mesh.get_local_rank(number) for number in range(mesh.ndim)]
    own = coordinates.pop(place)
    if any(coordinates):
        return  # another copy, of which the first has its own
    most = -(-len(tensor) // mesh.size(place))
    mine = part.to_local()
    sent = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])]) if len(mine) < most else mine.contiguous()
    received = [torch.empty_like(sent) for _ in range(mesh.size(place))] if own == 0 else None
    dist.gather(sent, received, group=mesh.get_group(place), group_dst=0)
    for number, rows in enumerate(received or ()):
        yield rows[: max(0, len(tensor) - number * most)]


def sharded(tensor: Tensor) -> bool:
    """Whether processes hold parts of it: a DTensor, whose module takes long to import."""
    return hasattr(tensor, "placements")


def placed(full: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, laid out as a parameter is."""
    if not sharded(like):
        return full.to(like.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    parameter = cast("DTensor", like)
    return distribute_tensor(full.to(like.device), parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def put(target: Tensor, full: Tensor) -> None:
    """Copy a whole tensor into a parameter, or the part of it that is here."""
    local(target).copy_(local(placed(full, target)) if sharded(target) else full)

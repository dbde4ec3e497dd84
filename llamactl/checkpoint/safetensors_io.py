"""Tensors on disk: safetensors files, written one tensor at a time and read by the safetensors library."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llamactl.checkpoint.tensor_headers import open_tensors, read_shapes
from llamactl.distributed.dtensor import gather_rows
from llamactl.errors import DataError

NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
# Bytes; the library pads its header alike.
ALIGNMENT = 8


def serialize_tensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Serialize tensors as a safetensors file, byte for byte as the library does, without a second copy in memory.

    The format is the header's length in 8 bytes, a JSON header, then the tensors (huggingface.co/docs/safetensors). Sharded
    tensors are gathered part by part, so all ranks must iterate together.
    """
    # The widest elements first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensor_bytes(tensors[name])
        entry = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = entry
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    yield len(encoded).to_bytes(8, "little") + encoded
    for name in names:
        # map keeps no reference to a part while the next is gathered; a for loop would.
        yield from map(_as_bytes, gather_rows(tensors[name]))


def _as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in main memory."""
    flat = tensor.cpu().contiguous().reshape(-1)
    # One element counts as contiguous with any stride, but a view as bytes needs stride 1.
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().data


def group_by_size(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Group tensors, in order, into groups of at most `most` bytes; a larger tensor is a group by itself.

    The rule is that of huggingface_hub's `split_torch_state_dict_into_shards`, so the files equal those of transformers.
    """
    groups: list[dict[str, Tensor]] = []
    open_group: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor_bytes(tensor) > most:
            groups.append({name: tensor})
            continue
        if sum(map(tensor_bytes, open_group.values())) + tensor_bytes(tensor) > most:
            groups.append(open_group)
            open_group = {}
        open_group[name] = tensor
    return [*groups, open_group] if open_group or not groups else groups


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a full tensor, also of a sharded one."""
    return tensor.numel() * tensor.element_size()


def iter_tensors(path: Path, root: Path | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file by name, one at a time; raises DataError, also for a number that is not finite."""
    for name in read_shapes(path, root):
        # Opened again for each: pages read through a mapping stay in memory until it is closed.
        with open_tensors(path, root) as file:
            yield name, _check_finite(path, name, file.get_tensor(name))


def load_tensors(path: Path, root: Path | None = None) -> dict[str, Tensor]:
    """Load all tensors of a file by name; raises DataError, also for a number that is not finite."""
    names = read_shapes(path, root)
    with open_tensors(path, root) as file:
        return {name: _check_finite(path, name, file.get_tensor(name)) for name in names}


def _check_finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    # The sum is finite only if all elements are, and all threads add it up; one of large elements may not be. The minimum and
    # the maximum suffice: both are NaN if an element is.
    if tensor.numel() and not tensor.sum().isfinite() and not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise DataError(f"{path} is damaged.", f"{name} holds numbers that are not finite.")
    return tensor

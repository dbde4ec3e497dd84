"""Tensors on disk: safetensors files, written a tensor at a time and read by the library of that name."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llamactl.errors import BadData

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
    (huggingface.co/docs/safetensors).
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        described = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = described
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % ALIGNMENT)
    yield len(written).to_bytes(8, "little") + written
    for name in names:
        yield tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; raises BadData that names it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadData(f"{path} is damaged.", str(error)) from error

"""The names and shapes of the tensors in a safetensors file. Knows no PyTorch, whose import takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llamactl.errors import DataError
from llamactl.storage.records import check_file

# The dtypes of weights and optimizer state.
FLOATS = ("F64", "F32", "F16", "BF16")


def read_shapes(path: Path, root: Path | None = None) -> dict[str, tuple[int, ...]]:
    """Read the shape of each tensor from a file's header; raises DataError, also for a dtype that is not floating point."""
    shapes = {}
    with open_tensors(path, root, "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            shapes[name] = tuple(part.get_shape())
            if part.get_dtype() not in FLOATS:
                raise DataError(f"{path} is damaged.", f"{name} has the dtype {part.get_dtype()}, which is not floating point.")
    return shapes


@contextmanager
def open_tensors(path: Path, root: Path | None, framework: str = "pt") -> Iterator[Any]:
    """Open a file, whose tensors are read as those of a framework; raises DataError."""
    # The library opens the path itself, and would follow a link.
    check_file(path, root)
    try:
        with safe_open(path, framework) as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} is damaged.", str(error)) from error

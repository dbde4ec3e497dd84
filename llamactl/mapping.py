"""Shards as arrays: their sizes are checked when a dataset is opened, each file is mapped when it is first read.

15 trillion tokens are tens of thousands of files. To map them all takes seconds, and each map holds a file open, of which many
systems let a process have 1,024.
"""

import errno
import mmap
import resource
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import cast, overload

import numpy as np
from numpy.lib.format import open_memmap

from llamactl.errors import BadData, NoRoom

HEADER = 128  # bytes before the tokens, as numpy writes it whatever their number
MAPS = 4_096  # at once, or a quarter of the files that the process may open


class Shards(Sequence[np.ndarray]):
    """The shards of a split, mapped as they are read; those read last stay mapped."""

    def __init__(self, folder: Path, tokens: Mapping[str, int], dtype: str) -> None:
        """Files of a folder, and how many tokens each has; raises BadData for one that is missing or has another size."""
        self._folder, self._dtype = folder, dtype
        self._files, self.lengths = tuple(tokens), tuple(tokens.values())
        most = max(1, min(MAPS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._map: Callable[[str, int], np.ndarray] = lru_cache(most)(partial(_mapped, folder, dtype))
        width = np.dtype(dtype).itemsize
        for file, length in tokens.items():
            if _size(folder / file) != HEADER + width * length:
                self._map(file, length)  # tells what is wrong with it

    def __len__(self) -> int:
        """How many there are."""
        return len(self._files)

    @overload
    def __getitem__(self, number: int, /) -> np.ndarray: ...

    @overload
    def __getitem__(self, number: slice, /) -> "Shards": ...

    def __getitem__(self, number: int | slice, /) -> "np.ndarray | Shards":
        """Map a shard, or choose some; raises BadData for one that is damaged, NoRoom when too many files are open."""
        if isinstance(number, slice):
            chosen = zip(self._files[number], self.lengths[number], strict=True)
            return Shards(self._folder, dict(chosen), self._dtype)
        return self._map(self._files[number], self.lengths[number])


def excuse(path: Path, error: OSError | ValueError) -> None:
    """Raise NoRoom for an error that says nothing of a file: others are open, too many of them."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        fix = "Allow more open files: ulimit -n 4096"
        raise NoRoom(f"The system refused to open {path}.", f"{error.strerror}.", fix) from error


def _size(path: Path) -> int:
    """The bytes of a file; -1 where it can't be told."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _mapped(folder: Path, dtype: str, file: str, length: int) -> np.ndarray:
    path, fix = folder / file, f"Remove {folder} and prepare it again."
    try:
        tokens = open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        excuse(path, error)
        raise BadData(f"The shard {path} is missing or damaged.", str(error), fix) from error
    if tokens.shape != (length,) or tokens.dtype != np.dtype(dtype):
        why = f"It holds {tokens.shape} {tokens.dtype}; dataset.json says {length} {dtype}."
        raise BadData(f"The shard {path} has the wrong size.", why, fix)
    cast(mmap.mmap, tokens.base).madvise(mmap.MADV_RANDOM)  # or up to megabytes around each window would be read with it
    return tokens

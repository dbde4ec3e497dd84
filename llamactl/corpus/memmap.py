"""Shards as arrays: their sizes are checked when a dataset is opened, and each file is opened when it is first read.

Training and evaluation read through `Shards.read`, the only place that protects them from a file that changes meanwhile. A
read of a file that shrank is short, where a memory map of it would end the process (SIGBUS). The file must be the one that was
there at opening, and no id may exceed the vocabulary. `Shards[i]` is a memory map, to explore a dataset.

15 trillion tokens are tens of thousands of files. To open them all takes seconds, and many systems let a process have 1,024.
"""

import copy
import errno
import io
import mmap
import os
import resource
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple, cast, overload

import numpy as np
from numpy.lib import format as npy

from llamactl.errors import DataError, OutOfSpace
from llamactl.storage.records import open_file

HEADER = 128  # bytes before the tokens, as numpy writes it whatever their number
MAPS = 4_096  # files open at once, or a quarter of those that the process may open


class Stamp(NamedTuple):
    """The identity and state of a file, by which a change is noticed; `changed` is its mtime in nanoseconds."""

    device: int
    inode: int
    size: int
    changed: int


class Shards(Sequence[np.ndarray]):
    """The shards of a split, opened when they are first read; the most recently read ones stay open."""

    def __init__(self, folder: Path, tokens: Mapping[str, int], dtype: str, vocab_size: int = 1 << 32) -> None:
        """Take the files of a folder with their token counts, and the number of ids in the vocabulary.

        Raises DataError for a file that is missing, is a link or no regular file, or has another size.
        """
        self._folder, self._dtype = folder, dtype
        self._files, self.lengths = tuple(tokens), tuple(tokens.values())
        # A quarter of the limit, as there may be four such caches: maps and descriptors, of train and val.
        max_open = max(1, min(MAPS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._map: Callable[[str, int], np.ndarray] = lru_cache(max_open)(partial(_mapped, folder, dtype))
        self._open: Callable[[str, int, Stamp], _Shard] = lru_cache(max_open)(partial(_Shard, folder, dtype, vocab_size))
        for parent in {file.rpartition("/")[0] for file in tokens}:
            if (folder / parent).is_symlink() and parent:
                raise DataError(
                    f"{folder / parent} is damaged.", "It is a link; files of a dataset never are.", _remake(folder)
                )
        # Opening costs one lstat per file; headers are read with the first tokens.
        self._stamps = tuple(self._checked(tokens))

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._files)

    @overload
    def __getitem__(self, number: int, /) -> np.ndarray: ...

    @overload
    def __getitem__(self, number: slice, /) -> "Shards": ...

    def __getitem__(self, number: int | slice, /) -> "np.ndarray | Shards":
        """Map a shard, or choose some; raises DataError for one that is damaged, OutOfSpace when too many files are open."""
        if isinstance(number, slice):
            chosen = copy.copy(self)
            chosen._files, chosen.lengths = self._files[number], self.lengths[number]
            chosen._stamps = self._stamps[number]
            return chosen
        return self._map(self._files[number], self.lengths[number])

    def read(self, number: int, start: int, stop: int) -> np.ndarray:
        """Read the tokens from `start` to `stop` of a shard.

        Raises DataError when the file is not the one that was there at opening, or holds ids that the vocabulary lacks.
        """
        return self._open(self._files[number], self.lengths[number], self._stamps[number]).read(start, stop)

    def _checked(self, tokens: Mapping[str, int]) -> Iterator[Stamp]:
        width, folder = np.dtype(self._dtype).itemsize, str(self._folder)  # strings, as there may be many files
        for file, length in tokens.items():
            expected = HEADER + width * length
            try:
                status = os.lstat(f"{folder}/{file}")
            except OSError as error:
                raise _damaged(self._folder / file, self._folder, f"{error.strerror}.") from error
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(self._folder / file, self._folder, "It is not a regular file.")
            if status.st_size != expected:
                why = f"It has {status.st_size:,} bytes; {length:,} {self._dtype} take {expected:,}."
                raise DataError(f"The shard {self._folder / file} has the wrong size.", why, _remake(self._folder))
            yield _stamp(status)


class _Shard:
    """An open shard; its descriptor is closed when the object is collected."""

    def __init__(self, folder: Path, dtype: str, vocab_size: int, file: str, length: int, stamp: Stamp) -> None:
        """Open the file and compare its header with dataset.json; raises DataError, OutOfSpace."""
        self._folder, self._path, self._dtype = folder, folder / file, np.dtype(dtype)
        self._name = str(self._path)  # the system is asked about it for each window
        self._vocab_size, self._length, self._stamp = vocab_size, length, stamp
        try:
            with open_file(self._path, folder) as opened:
                self._descriptor = os.dup(opened.fileno())
        except (DataError, OSError) as error:
            raise_if_too_many_open_files(self._path, error if isinstance(error, OSError) else error.__cause__)
            raise _damaged(self._path, folder, error.why if isinstance(error, DataError) else f"{error.strerror}.") from error
        # Not __del__: when the interpreter ends, os is gone before the last shard is.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._check_header()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the tokens from `start` to `stop`; raises DataError."""
        start, stop, _ = slice(start, stop).indices(self._length)
        # The descriptor would still read a file that was moved away or replaced: only its path tells.
        self._check_unchanged()
        tokens = np.frombuffer(self._bytes(HEADER + start * self._dtype.itemsize, max(0, stop - start)), self._dtype)
        largest = int(tokens.max(initial=0))
        if largest >= self._vocab_size:
            why = f"It holds the id {largest:,}; the tokenizer has {self._vocab_size:,} ids."
            raise _damaged(self._path, self._folder, why)
        return tokens

    def _bytes(self, offset: int, tokens: int) -> bytes:
        expected = tokens * self._dtype.itemsize
        try:
            data = os.pread(self._descriptor, expected, offset)
            while data and len(data) < expected:  # the kernel gives at most 2 GiB at once
                more = os.pread(self._descriptor, expected - len(data), offset + len(data))
                data = data + more if more else b""
        except OSError as error:
            raise _damaged(self._path, self._folder, f"{error.strerror}.") from error
        if len(data) != expected:
            raise _damaged(self._path, self._folder, "It became shorter while it was read.")
        return data

    def _check_unchanged(self) -> None:
        """Raise DataError unless the path still leads to the same file in the same state as at opening."""
        try:
            now = _stamp(os.lstat(self._name))
        except OSError as error:
            raise _damaged(self._path, self._folder, f"{error.strerror}; was it moved or its disk unmounted?") from error
        if now != self._stamp:
            raise _damaged(self._path, self._folder, "It was written to, or replaced, after it was opened.")

    def _check_header(self) -> None:
        try:
            header = read_header(os.pread(self._descriptor, HEADER, 0))
        except (OSError, ValueError) as error:
            raise _damaged(self._path, self._folder, f"{error}.") from error
        _check_shape(self._path, self._folder, header, (self._length, self._dtype))


def read_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and the dtype from the first HEADER bytes of a shard; raises ValueError for any other header."""
    file = io.BytesIO(header)
    try:
        version = npy.read_magic(file)
        shape, _, dtype = npy.read_array_header_1_0(file)
    except (ValueError, SyntaxError, TokenError) as error:  # the latter two are what numpy raises for text that is no literal
        raise ValueError(f"Its header can't be read: {error}") from error
    if version != (1, 0) or file.tell() != HEADER:
        raise ValueError("Its header is not as llamactl writes it")
    return shape, dtype


def read_tokens(shards: Sequence[np.ndarray], number: int, start: int, stop: int) -> np.ndarray:
    """Read tokens of one of several shards, which are files (as `Shards.read` does) or arrays."""
    tokens: np.ndarray = shards.read(number, start, stop) if isinstance(shards, Shards) else shards[number][start:stop]
    return tokens


def shard_lengths(shards: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the number of tokens of each shard without reading a file."""
    return shards.lengths if isinstance(shards, Shards) else tuple(map(len, shards))


def raise_if_too_many_open_files(path: Path, error: BaseException | None) -> None:
    """Raise OutOfSpace when an error says that too many files are open: then the file itself is not damaged."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        fix = "Allow more open files: ulimit -n 4096"
        raise OutOfSpace(f"The system refused to open {path}.", f"{error.strerror}.", fix) from error


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _remake(folder: Path) -> str:
    return f"Remove {folder} and prepare it again."


def _damaged(path: Path, folder: Path, why: str) -> DataError:
    return DataError(f"The shard {path} is missing or damaged.", why, _remake(folder))


def _check_shape(path: Path, folder: Path, found: tuple[tuple[int, ...], np.dtype], expected: tuple[int, np.dtype]) -> None:
    shape, dtype = found
    if shape != (expected[0],) or dtype != expected[1]:
        why = f"It holds {shape} {dtype}; dataset.json says {expected[0]} {expected[1]}."
        raise DataError(f"The shard {path} has the wrong size.", why, _remake(folder))


def _mapped(folder: Path, dtype: str, file: str, length: int) -> np.ndarray:
    path = folder / file
    try:
        tokens = npy.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:  # the latter two of a header
        raise_if_too_many_open_files(path, error)
        raise _damaged(path, folder, str(error)) from error
    _check_shape(path, folder, (tokens.shape, tokens.dtype), (length, np.dtype(dtype)))
    cast(mmap.mmap, tokens.base).madvise(mmap.MADV_RANDOM)  # or up to megabytes around each window would be read with it
    return tokens

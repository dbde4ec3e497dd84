"""Write a shard: a valid .npy file that grows as documents come.

Its sha256 covers the header, which is known last. So the data are hashed (xxh3) as they are written, and the draft is read
back once for the sha256, which also shows that the disk holds what was written, whoever else wrote to the file.
"""

import hashlib
import io
import os
from contextlib import ExitStack
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from xxhash import xxh3_128

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import Shard, Split
from llamactl.errors import WriteFailed
from llamactl.storage import atomic


class ShardWriter:
    """A writer that appends documents to a shard in constant memory."""

    def __init__(self, folder: DatasetDir, split: Split, piece: int, dtype: str) -> None:
        """Prepare to write the shard of `split` that comes from `piece`, with ids of type `dtype`."""
        self._path = folder.shard(split, piece)
        self._dtype = np.dtype(dtype)
        self._tokens = self._documents = self._text_bytes = 0
        self._passed, self._sha256 = xxh3_128(), ""
        self._stack = ExitStack()
        self._file: BinaryIO

    def __enter__(self) -> "ShardWriter":
        """Start a draft, which is renamed to the shard when the block ends without an error."""
        self._file = self._stack.enter_context(atomic.atomic_write(self._path))
        # The stack unwinds in reverse: _complete runs before atomic_write renames the draft.
        self._stack.push(self._complete)
        # A placeholder of the right size: the number of tokens is not known yet.
        self._file.write(self._header())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Complete the header and rename the draft, or remove it after an error (also one in completing it)."""
        self._stack.__exit__(kind, error, trace)

    def _complete(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.seek(0)
            self._file.write(self._header())
            self._file.flush()
            self._sha256 = self._read_back()

    def _read_back(self) -> str:
        """Return the sha256 of the draft; raises WriteFailed when it is not what was written."""
        header, sha256, xxh3 = self._header(), hashlib.sha256(), xxh3_128()
        position = 0
        while data := os.pread(self._file.fileno(), atomic.BUFFER, position):
            sha256.update(data)
            # The header was rewritten at the end, so the running hash covers only what follows it.
            xxh3.update(data[max(0, len(header) - position) :])
            position += len(data)
        # Read again: another process may have overwritten the beginning since the first read.
        start = os.pread(self._file.fileno(), len(header), 0)
        size = len(header) + self._tokens * self._dtype.itemsize
        if (start, position, xxh3.digest()) != (header, size, self._passed.digest()):
            why = "The disk does not hold what was written: it failed, or another process writes to the file."
            raise WriteFailed(f"Can't write {self._path}.", why, "Run the same command again.")
        return sha256.hexdigest()

    def add(self, ids: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append the ids of some documents, each with its end-of-text token."""
        data = ids.astype(self._dtype).data
        self._passed.update(data)
        self._file.write(data)
        self._tokens += len(ids)
        self._documents += documents
        self._text_bytes += text_bytes

    def shard(self) -> Shard:
        """Return the record of the shard; valid only after the block has ended."""
        return Shard(
            file=f"{self._path.parent.name}/{self._path.name}",
            tokens=self._tokens,
            documents=self._documents,
            text_bytes=self._text_bytes,
            sha256=self._sha256,
        )

    def _header(self) -> bytes:
        """Build the .npy header for the tokens so far; numpy pads it, so that its size stays the same when the length grows."""
        header = io.BytesIO()
        descr = npy.dtype_to_descr(self._dtype)
        npy.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": (self._tokens,)})
        return header.getvalue()

"""A shard on disk: a real .npy file, written as documents come."""

from contextlib import ExitStack
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from llamactl import durable
from llamactl.artifacts import DatasetDir, Shard, Split


class ShardWriter:
    """Appends documents to a shard, in memory that does not grow with it."""

    def __init__(self, folder: DatasetDir, split: Split, piece: int, dtype: str) -> None:
        """Write the shard of `split` that comes from `piece`, with ids of `dtype`."""
        self._path = folder.shard(split, piece)
        self._dtype = np.dtype(dtype)
        self._tokens = self._documents = self._text_bytes = 0
        self._stack = ExitStack()
        self._file: BinaryIO

    def __enter__(self) -> "ShardWriter":
        """Start a draft, which becomes the shard when the block ends well."""
        self._file = self._stack.enter_context(durable.writing(self._path))
        self._stack.push(self._complete)
        self._write_header()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Complete the header and rename, or drop the draft after an error, which completing it may be."""
        self._stack.__exit__(kind, error, trace)

    def _complete(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.seek(0)
            self._write_header()

    def add(self, ids: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append the ids of some documents, each with its end-of-text token."""
        self._file.write(ids.astype(self._dtype).data)
        self._tokens += len(ids)
        self._documents += documents
        self._text_bytes += text_bytes

    def shard(self) -> Shard:
        """What was written; only after the block."""
        return Shard(
            file=f"{self._path.parent.name}/{self._path.name}",
            tokens=self._tokens,
            documents=self._documents,
            text_bytes=self._text_bytes,
            sha256=durable.sha256(self._path),
        )

    def _write_header(self) -> None:
        """Write it, or write it again in place: numpy leaves room in it for the length to grow."""
        descr = npy.dtype_to_descr(self._dtype)
        npy.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": (self._tokens,)})

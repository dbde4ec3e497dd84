"""Write rows of tokens into the shards of a split."""

from contextlib import ExitStack
from types import TracebackType

import numpy as np

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import Shard, Split
from llamactl.corpus.packing import Row
from llamactl.corpus.pieces import token_dtype
from llamactl.corpus.shards import ShardWriter
from llamactl.tokenizer.bpe import Tokenizer

LARGEST = 64 << 20  # tokens of a shard


class RowWriter:
    """Writes rows of `width` tokens; each shard ends with one token more, as a window needs the one after it."""

    def __init__(self, folder: DatasetDir, split: Split, tokenizer: Tokenizer, width: int) -> None:
        """Prepare to write the shards of a split, the first one with the first row."""
        self._folder, self._split, self._tokenizer = folder, split, tokenizer
        self._largest = max(1, LARGEST // width)
        self._stack = ExitStack()
        self._writer: ShardWriter | None = None
        self._in_shard = self.rows = 0
        self.shards: list[Shard] = []

    def __enter__(self) -> "RowWriter":
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the last shard, or remove its draft after an error."""
        if kind is None:
            self._finish_shard()
        self._stack.__exit__(kind, error, trace)

    def add(self, row: Row) -> None:
        """Append a row."""
        if self._in_shard == self._largest:
            self._finish_shard()
        if self._writer is None:
            dtype = token_dtype(self._tokenizer.vocab_size)
            self._writer = self._stack.enter_context(ShardWriter(self._folder, self._split, len(self.shards), dtype))
        self._writer.add(row.tokens, row.conversations, int(self._tokenizer.byte_lengths[row.tokens].sum()))
        self._in_shard += 1
        self.rows += 1

    def _finish_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.add(np.array([self._tokenizer.end]), 0, 0)
        self._stack.close()
        self.shards.append(self._writer.shard())
        self._writer, self._in_shard = None, 0

"""The folder of a dataset: the names of its files, and how it is opened.

Everything is read strictly: unknown keys, unexpected file names and wrong sizes are refused before use.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from llamactl.corpus.compression import measure_compression
from llamactl.corpus.dataset_info import DatasetInfo, Split
from llamactl.corpus.memmap import Shards
from llamactl.errors import DataError, suggest_nearest
from llamactl.storage.home import check_name, folders_with, home_folder
from llamactl.storage.records import LARGEST_RECORD, hash_file, read_record
from llamactl.tokenizer.bpe import Tokenizer, read_tokenizer
from llamactl.tokenizer.roles import chat_template


@dataclass(frozen=True)
class Dataset:
    """An open dataset; shards are opened when they are first read, and none of them is in memory yet."""

    name: str
    info: DatasetInfo
    tokenizer: Tokenizer
    train: Sequence[np.ndarray]
    val: Sequence[np.ndarray]

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Return the bytes of text that each id stands for, so that those of held-out text add up to its bytes.

        A tokenizer that changes text, as one that lowers case or puts a space before it, stands for a few more or less.
        """
        lengths = self.tokenizer.byte_lengths
        if self.tokenizer.lossless:
            return lengths
        counts = sum(np.bincount(shard, minlength=len(lengths)) for shard in map(np.asarray, self.val))
        return np.asarray(lengths * (self.info.total("val", "text_bytes") / max(1, np.sum(counts * lengths))))

    @cached_property
    def compressed_bits_per_byte(self) -> float:
        """Return the bits per byte to which bzip2 compresses the training text."""
        return measure_compression(self.train, self.tokenizer)


@dataclass(frozen=True)
class DatasetDir:
    """The folder data/<name> of a dataset, which may be unfinished."""

    path: Path

    @classmethod
    def from_name(cls, name: str) -> "DatasetDir":
        """Find the dataset with a name; an empty name means the newest complete one, of text where there is one.

        Raises DataError when there is none.
        """
        folders = home_folder() / "data"
        if name:
            return cls(folders / check_name(name))
        found = [cls(folder) for folder in folders_with(folders, "dataset.json")]
        # Conversations are for the run that was made with them, whose config names them.
        for dataset in [*(each for each in found if not each.holds_conversations()), *found]:
            return dataset
        raise DataError(f"There is no dataset in {folders}/ yet.", "", "Make one: llamactl prepare sample")

    def holds_conversations(self) -> bool:
        """Check whether the dataset is one of conversations; False where it can't be read, as whoever opens it is told."""
        try:
            return self.info().recipe.row_tokens > 0
        except DataError:
            return False

    @property
    def info_path(self) -> Path:
        """Return the path of dataset.json, which is written last."""
        return self.path / "dataset.json"

    @property
    def tokenizer_path(self) -> Path:
        """Return the path of the tokenizer that made the tokens."""
        return self.path / "tokenizer.json"

    def shard(self, split: Split, piece: int) -> Path:
        """Return the path of a piece's tokens in a split."""
        return self.path / split / f"{piece:05d}.npy"

    def receipt(self, piece: int) -> Path:
        """Return the path of a finished piece's receipt, which exists until the dataset is sealed."""
        return self.path / ".pieces" / f"{piece:05d}.json"

    @property
    def lock_path(self) -> Path:
        """Return the lock of a preparation: exclusive for one that makes all pieces, shared by those that make shares."""
        return self.path / ".pieces" / "lock"

    @property
    def tokenizer_lock_path(self) -> Path:
        """Return the lock of the process that writes the tokenizer."""
        return self.path / ".pieces" / "tokenizer.lock"

    def piece_lock(self, piece: int) -> Path:
        """Return the lock of the process that makes a piece."""
        return self.path / ".pieces" / f"{piece:05d}.lock"

    def duplicates_path(self, piece: int) -> Path:
        """Return the path of the marks of a piece's duplicates, which exist until the dataset is sealed."""
        return self.path / ".pieces" / f"{piece:05d}.twins.npy"

    def info(self) -> DatasetInfo:
        """Read dataset.json; raises DataError when it is missing or damaged."""
        # lexists: a dangling link is damage that read_record reports, not an unfinished dataset.
        if not os.path.lexists(self.info_path):
            names = [folder.name for folder in folders_with(home_folder() / "data", "dataset.json")]
            why = suggest_nearest(self.path.name, names) if names else "There is no dataset yet."
            raise DataError(f"There is no finished dataset {self.path}.", why, "Make one: llamactl prepare --help")
        info = read_record(self.info_path, DatasetInfo, self.path)
        # The digest covers every field, so an edit by hand or a flipped bit in dataset.json is found here.
        if info.with_digest() != info:
            raise DataError(f"{self.info_path} is damaged: its digest does not match.", "", self._remake())
        return info

    def open(self) -> Dataset:
        """Open the dataset after a check of every shard's size and the tokenizer's hash; raises DataError."""
        info = self.info()
        if hash_file(self.tokenizer_path, self.path, LARGEST_RECORD) != info.tokenizer:
            raise DataError(f"{self.tokenizer_path} is not the one that made these tokens.", "", self._remake())
        tokenizer = read_tokenizer(self.tokenizer_path, self.path)
        if tokenizer.vocab_size != info.vocab_size:
            why = f"{self.tokenizer_path} has {tokenizer.vocab_size:,} ids, {self.info_path} says {info.vocab_size:,}."
            raise DataError(f"{self.path} is damaged.", why, self._remake())
        if info.recipe.row_tokens:
            tokenizer.chat_template = chat_template(tokenizer)
        # Only sizes are checked here; `verify` reads every byte, which takes a minute for 18 GB.
        tokens = [{shard.file: shard.tokens for shard in info.shards if shard.split == split} for split in ("train", "val")]
        train, val = (Shards(self.path, files, info.dtype, info.vocab_size) for files in tokens)
        return Dataset(self.path.name, info, tokenizer, train, val)

    def _remake(self) -> str:
        return f"Remove {self.path} and prepare it again."

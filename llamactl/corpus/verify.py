"""Read every byte of a finished dataset and compare it with what dataset.json says."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import BinaryIO, TypeVar

import numpy as np

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, Shard, Split
from llamactl.corpus.memmap import HEADER, raise_if_too_many_open_files, read_header
from llamactl.errors import DataError, Diverged, UserError
from llamactl.storage.records import open_file, read_file
from llamactl.tokenizer.bpe import Tokenizer

CHUNK = 8 << 20  # bytes of a shard that are in memory at once

T = TypeVar("T")


def check_dataset(folder: DatasetDir, split: Split | None = None) -> Iterator[tuple[str, str]]:
    """Yield each file of a dataset, or of one split, with what is wrong with it (empty: nothing).

    Shards that dataset.json does not list are wrong too.
    """
    try:
        info = folder.info()
    except UserError as error:
        yield folder.info_path.name, error.why or error.what
        return
    yield folder.info_path.name, _inconsistency(folder, info)
    tokenizer = _tokenizer(folder, info)
    yield folder.tokenizer_path.name, "" if isinstance(tokenizer, Tokenizer) else tokenizer
    known = tokenizer if isinstance(tokenizer, Tokenizer) else None
    for shard in info.shards:
        if split in (None, shard.split):
            yield shard.file, _damage(folder, shard, info, known)
    yield from _unlisted_files(folder, info)


def _inconsistency(folder: DatasetDir, info: DatasetInfo) -> str:
    """Describe what dataset.json says about itself that can't be true; empty when nothing is."""
    if read_file(folder.info_path) != info.as_file().encode():
        return "It was changed after it was written."
    written = sum(shard.documents for shard in info.shards)
    if info.documents_read != written + sum(info.skipped.values()):
        return f"It counts {info.documents_read:,} documents read, but {written:,} written and {dict(info.skipped)} skipped."
    return ""


def _tokenizer(folder: DatasetDir, info: DatasetInfo) -> Tokenizer | str:
    """Read the tokenizer that made the tokens, or return what is wrong with its file."""
    try:
        content = read_file(folder.tokenizer_path)
        if hashlib.sha256(content).hexdigest() != info.tokenizer:
            return "It is not the one that made these tokens."
        tokenizer = Tokenizer(content.decode())
    except DataError as error:
        return error.why
    except UnicodeDecodeError as error:
        return f"It is not UTF-8: {error}."
    if tokenizer.vocab_size != info.vocab_size:
        return f"It has {tokenizer.vocab_size:,} ids; dataset.json says {info.vocab_size:,}."
    return tokenizer


def _damage(folder: DatasetDir, shard: Shard, info: DatasetInfo, tokenizer: Tokenizer | None) -> str:
    """Describe what is wrong with a shard; None for an unknown tokenizer. Raises OutOfSpace for too many open files."""
    path = folder.path / shard.file
    try:
        with open_file(path, folder.path) as file:
            # The size first: it bounds how much is read of a file that may be anything.
            expected = HEADER + np.dtype(info.dtype).itemsize * shard.tokens
            if (size := os.fstat(file.fileno()).st_size) != expected:
                return f"It has {size:,} bytes; {shard.tokens:,} tokens of dataset.json take {expected:,}."
            return _content(file, shard, info, tokenizer)
    except DataError as error:
        raise_if_too_many_open_files(path, error.__cause__)
        return error.why
    except (OSError, ValueError) as error:
        raise_if_too_many_open_files(path, error)
        return f"It can't be read: {error}."


def _content(file: BinaryIO, shard: Shard, info: DatasetInfo, tokenizer: Tokenizer | None) -> str:
    # One pass computes the hash and all counts: reading the disk is the cost.
    digest, header = hashlib.sha256(), file.read(HEADER)
    digest.update(header)
    tokens = documents = text_bytes = 0
    end, ending = (tokenizer.end, tokenizer.separator[-1]) if tokenizer else 2 * (info.vocab_size - 1,)
    lengths = tokenizer.byte_lengths if tokenizer and tokenizer.lossless else None
    foreign, last = -1, ending
    while data := file.read(CHUNK):
        digest.update(data)
        ids = np.frombuffer(data, info.dtype, len(data) // np.dtype(info.dtype).itemsize)
        foreign = max(foreign, int(ids.max(initial=0)))
        tokens, documents, last = tokens + len(ids), documents + int((ids == end).sum()), int(ids[-1])
        # Ids beyond the vocabulary would be out of bounds of `lengths`; they are reported below.
        if lengths is not None and foreign < info.vocab_size:
            text_bytes += int(lengths[ids].sum())
    if digest.hexdigest() != shard.sha256:
        return "Its sha256 is not the one in dataset.json."
    shape, dtype = read_header(header)
    if shape != (shard.tokens,) or dtype != np.dtype(info.dtype) or tokens != shard.tokens:
        return f"It holds {shape} {dtype}; dataset.json says {shard.tokens:,} {info.dtype}."
    if foreign >= info.vocab_size:
        return f"It holds the id {foreign:,}; the tokenizer has {info.vocab_size:,} ids."
    if info.recipe.row_tokens:
        # A row holds several conversations, and its rest is filled with end-of-text tokens.
        if tokens % info.recipe.row_tokens != 1:
            return f"It holds {tokens:,} tokens, which are not rows of {info.recipe.row_tokens:,}."
    elif documents != shard.documents or last != ending:
        return f"It holds {tokens:,} tokens of {documents:,} documents; dataset.json says {shard.documents:,} documents."
    if lengths is not None and text_bytes != shard.text_bytes:
        return f"Its tokens are {text_bytes:,} bytes of text; dataset.json says {shard.text_bytes:,}."
    return ""


def _unlisted_files(folder: DatasetDir, info: DatasetInfo) -> Iterator[tuple[str, str]]:
    """Yield files among the shards that dataset.json does not list, and what is wrong with them."""
    listed = {shard.file for shard in info.shards}
    for split in ("train", "val"):
        if (folder.path / split).is_symlink():
            yield split, "It is a link; files of a dataset never are."
        elif (folder.path / split).is_dir():
            names = sorted(path.name for path in (folder.path / split).iterdir())
            unlisted = [name for name in names if f"{split}/{name}" not in listed and name.endswith((".npy", ".draft"))]
            yield from ((f"{split}/{name}", "It is not in dataset.json.") for name in unlisted)


def verify_in_background(
    events: Iterator[T], folder: DatasetDir, split: Split | None = None, patient: Callable[[], bool] = lambda: True
) -> Iterator[T]:
    """Pass events on while a thread reads every byte of a dataset, or of a split; raises DataError or OutOfSpace.

    So training starts immediately: hashing OpenWebText's 18 GB takes most of a minute. When the events end first, this waits
    for the thread as long as `patient` returns True, and reads a dataset that changed since the start again: results computed
    from damaged data must not look like a success.
    """
    reading = _Reading(folder, split)
    try:
        for event in events:
            reading.raise_finding()
            yield event
        reading.wait(patient)
        if patient():
            reading.check_again()
    except UserError as error:  # which may well come of the damage
        # A diverged loss may be due to damaged data: wait for the thread, so that the user gets the cause.
        if isinstance(error, Diverged):
            reading.wait(patient)
        reading.raise_finding(error)
        raise
    finally:
        reading.stop()


class _Reading:
    """A thread that verifies a dataset once."""

    def __init__(self, folder: DatasetDir, split: Split | None) -> None:
        self._folder, self._split, self._stopped = folder, split, Event()
        self._found: SimpleQueue[UserError] = SimpleQueue()
        self._digest, self._before = folder.info().digest, self._stamps()
        self._thread = Thread(target=self._verify, daemon=True)
        self._thread.start()

    def raise_finding(self, cause: UserError | None = None) -> None:
        """Raise the error that was found so far, if any."""
        if not self._found.empty():
            raise self._found.get() from cause

    def wait(self, patient: Callable[[], bool]) -> None:
        """Wait for the thread to end, and raise the error that it found, if any."""
        while self._thread.is_alive() and patient():
            # In short steps, so that a signal which ends the patience is noticed.
            self._thread.join(0.1)
        self.raise_finding()

    def check_again(self) -> None:
        """Raise DataError if a file changed since the start and is damaged now, or another dataset replaced this one."""
        if self._stamps() != self._before:
            self._verify()
        elif self._folder.info().digest != self._digest:
            self._found.put(self._replaced())
        self.raise_finding()

    def stop(self) -> None:
        """Tell the thread to end after the file that it reads."""
        self._stopped.set()

    def _stamps(self) -> dict[str, tuple[int, ...]]:
        """Return the identity and times of each file, by which a change is noticed; also the ctime, which can't be set back."""
        stamps: dict[str, tuple[int, ...]] = {}
        for path in (self._folder.tokenizer_path, *self._folder.path.glob("*/*.npy")):
            with suppress(OSError):
                status = path.lstat()
                stamps[str(path)] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return stamps

    def _verify(self) -> None:
        try:
            for name, damage in check_dataset(self._folder, self._split):
                if self._stopped.is_set():
                    return
                if damage:
                    self._found.put(_untrusted(self._folder, name, damage))
                    return
            if self._folder.info().digest != self._digest:
                self._found.put(self._replaced())
        except UserError as error:
            self._found.put(error)

    def _replaced(self) -> DataError:
        return _untrusted(self._folder, self._folder.info_path.name, "Another dataset took its place.")


def _untrusted(folder: DatasetDir, name: str, damage: str) -> DataError:
    fix = f"Remove {folder.path} and prepare it again; what was trained on it is not to be trusted."
    return DataError(f"{folder.path / name} is damaged.", damage, fix)

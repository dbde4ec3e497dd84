"""A finished dataset, held against its own description: every byte of every file."""

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import numpy as np

from llamactl import durable
from llamactl.artifacts import DatasetDir, Shard
from llamactl.errors import BadData, UserError
from llamactl.mapping import excuse

T = TypeVar("T")


def verify(folder: DatasetDir) -> Iterator[tuple[str, str]]:
    """Each file of a dataset and what is wrong with it, empty when nothing is."""
    try:
        info = folder.info()
    except UserError as error:
        yield folder.info_path.name, error.why or error.what
        return
    whole = folder.info_path.read_bytes() == (info.model_dump_json(indent=1) + "\n").encode()
    yield folder.info_path.name, "" if whole else "It is not as it was written."
    known = folder.tokenizer_path.exists() and durable.sha256(folder.tokenizer_path) == info.tokenizer
    yield folder.tokenizer_path.name, "" if known else "It is not the one that made these tokens."
    for shard in info.shards:
        yield shard.file, _damage(folder, shard, info.vocab_size)


def _damage(folder: DatasetDir, shard: Shard, vocab_size: int) -> str:
    path = folder.path / shard.file
    try:
        if durable.sha256(path) != shard.sha256:
            return "Its sha256 is not the one in dataset.json."
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        excuse(path, error)
        return f"It can't be read: {error}."
    ends = int(np.count_nonzero(tokens == vocab_size - 1))
    if tokens.shape != (shard.tokens,) or ends != shard.documents or int(tokens.max(initial=0)) >= vocab_size:
        return (
            f"It holds {len(tokens):,} tokens of {ends:,} documents; dataset.json says {shard.tokens:,} of {shard.documents:,}."
        )
    return ""


def alongside(events: Iterator[T], folder: DatasetDir) -> Iterator[T]:
    """Pass events on while another thread reads every byte of a dataset; raises what it finds, BadData or NoRoom.

    Training starts at once that way: hashing OpenWebText's 18 GB takes most of a minute.
    """
    found: SimpleQueue[UserError] = SimpleQueue()
    Thread(target=_report, args=(folder, found), daemon=True).start()
    for event in events:
        if not found.empty():
            raise found.get()
        yield event


def _report(folder: DatasetDir, found: "SimpleQueue[UserError]") -> None:
    try:
        for name, damage in verify(folder):
            if damage:
                fix = f"Remove {folder.path} and prepare it again; what was trained on it is not to be trusted."
                found.put(BadData(f"{folder.path / name} is damaged.", damage, fix))
    except UserError as error:
        found.put(error)

"""Look at datasets: list them, measure the documents of one, and remove one."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.dataset_info import Split
from llamactl.corpus.documents import SPLITS
from llamactl.corpus.memmap import read_tokens, shard_lengths
from llamactl.errors import UsageError, UserError
from llamactl.storage import atomic, locks
from llamactl.storage.home import home_folder
from llamactl.storage.records import folder_bytes

MEASURED = 20_000_000  # tokens of a split whose documents are measured: some seconds
READ = 1 << 20  # tokens at a time
PERCENTILES = (5, 25, 50, 75, 95, 100)


@dataclass(frozen=True)
class DatasetSummary:
    """The main facts of a dataset's folder; one that is not finished, or damaged, has only its size."""

    name: str
    state: str
    documents: int = 0
    tokens: int = 0
    val_tokens: int = 0
    text_bytes: int = 0
    tokenizer: str = ""
    vocab_size: int = 0
    bytes: int = 0


def summarize_datasets() -> list[DatasetSummary]:
    """Summarise all folders under data/, the newest first, as commands that take the newest see it."""
    folders = home_folder() / "data"
    found = [path for path in folders.iterdir() if path.is_dir() and not path.name.startswith(".")] if folders.is_dir() else []
    return [summarize_dataset(DatasetDir(path)) for path in sorted(found, key=_changed_at, reverse=True)]


def _changed_at(path: Path) -> int:
    """Return when a dataset was completed, or asked for again, in ns; of an unfinished one when its folder was changed."""
    info = DatasetDir(path).info_path
    return os.lstat(info if os.path.lexists(info) else path).st_mtime_ns


def summarize_dataset(folder: DatasetDir) -> DatasetSummary:
    """Summarise a dataset from dataset.json alone."""
    size = folder_bytes(folder.path)
    if not os.path.lexists(folder.info_path):
        preparing = locks.is_locked(folder.lock_path)
        return DatasetSummary(folder.path.name, "being prepared" if preparing else "unfinished", bytes=size)
    try:
        info = folder.info()
    except UserError:
        return DatasetSummary(folder.path.name, "damaged", bytes=size)
    return DatasetSummary(
        name=folder.path.name,
        state="complete",
        documents=sum(info.total(split, "documents") for split in SPLITS),
        tokens=info.total("train", "tokens"),
        val_tokens=info.total("val", "tokens"),
        text_bytes=sum(info.total(split, "text_bytes") for split in SPLITS),
        tokenizer=info.recipe.tokenizer,
        vocab_size=info.vocab_size,
        bytes=size,
    )


@dataclass(frozen=True)
class DocumentStatistics:
    """Statistics of the measured documents of a dataset; `lengths` are percentiles in tokens, without the end-of-text token.

    `repeated` of them have the tokens of an earlier one, and `leaked` of the validation split are in the training split too.
    `complete`: no split has more than what was measured.
    """

    complete: bool
    documents: int
    tokens: int
    lengths: dict[int, int]
    repeated: int
    leaked: int
    unused_ids: int


def measure_documents(dataset: Dataset, most: int = MEASURED) -> DocumentStatistics:
    """Measure the first documents of each split, up to `most` tokens of it."""
    lengths: list[int] = []
    seen: dict[Split, set[int]] = {split: set() for split in SPLITS}
    counts = np.zeros(dataset.info.vocab_size, dtype=np.int64)
    repeated = leaked = 0
    for split in SPLITS:
        for ids in _documents(dataset, split, most):
            lengths.append(len(ids))
            counts += np.bincount(ids, minlength=len(counts))
            digest = xxh3_64_intdigest(ids.tobytes())
            repeated += digest in seen[split]
            leaked += split == "val" and digest in seen["train"]
            seen[split].add(digest)
    percentiles = np.percentile(lengths, PERCENTILES, method="nearest") if lengths else np.zeros(len(PERCENTILES))
    return DocumentStatistics(
        complete=all(dataset.info.total(split, "tokens") <= most for split in SPLITS),
        documents=len(lengths),
        tokens=sum(lengths),
        lengths={percent: int(value) for percent, value in zip(PERCENTILES, percentiles, strict=True)},
        repeated=repeated,
        leaked=leaked,
        unused_ids=int((counts == 0).sum()),
    )


def _documents(dataset: Dataset, split: Split, most: int) -> Iterator[np.ndarray]:
    """Yield the ids of each document of a split, of rows those of each conversation without what fills a row."""
    shards, tokenizer = dataset.train if split == "train" else dataset.val, dataset.tokenizer
    if not dataset.info.recipe.row_tokens:
        # All but the first of a shard begin with the ids that begin a text.
        start = np.array(tokenizer.separator[1:])
        for ids in read_documents(shards, tokenizer.end, most):
            yield ids[len(start) :] if np.array_equal(ids[: len(start)], start) else ids
        return
    for ids in read_documents(shards, (tokenizer.start or (tokenizer.end,))[0], most):
        if len(said := ids[ids != tokenizer.end]):
            yield said


def read_documents(shards: Sequence[np.ndarray], end: int, most: int) -> Iterator[np.ndarray]:
    """Yield the ids of each document of a split, without the end-of-text token, until `most` tokens were read."""
    rest = np.zeros(0, dtype=np.uint32)
    for number, length in enumerate(shard_lengths(shards)):
        for start in range(0, min(length, most), READ):
            ids = np.concatenate([rest, read_tokens(shards, number, start, min(start + READ, length, most))])
            places = np.flatnonzero(ids == end)
            begins = np.concatenate([[0], places + 1])
            yield from (ids[begin:place] for begin, place in zip(begins, places, strict=False))
            rest = ids[begins[-1] :]
        most -= min(length, most)


def remove_dataset(folder: DatasetDir, sure: bool, used_by: Sequence[str]) -> DatasetSummary:
    """Remove a dataset and return its summary; raises UsageError unless `sure`, InUse while it is being prepared.

    Runs of the names `used_by` were trained on it: without it they can't be resumed.
    """
    summary = summarize_dataset(folder)
    if not sure:
        runs = "1 run was" if len(used_by) == 1 else f"{len(used_by)} runs were"
        using = f" {runs} trained on it, and can't be resumed without it." if used_by else ""
        why = f"It would free {summary.bytes / 1e6:,.1f} MB.{using}"
        fix = f"If that is meant: llamactl data remove {summary.name} --yes"
        raise UsageError(f"{folder.path} is still there.", why, fix)
    with locks.hold_removal_lock(folder.path, folder.lock_path):
        atomic.remove_folder(folder.path)
    return summary

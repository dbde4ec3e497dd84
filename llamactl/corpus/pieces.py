"""One piece of a source becomes a shard for each split, and a receipt that says what is in them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import repeat
from typing import Literal

import numpy as np
from pydantic import Field

from llamactl import durable
from llamactl.artifacts import DatasetDir, Recipe, Record, Shard, read
from llamactl.corpus.documents import SPLITS, Document, documents
from llamactl.corpus.shards import ShardWriter
from llamactl.corpus.sources import Source
from llamactl.encoders import opened

BATCH = 1 << 20  # characters that are encoded at once, by one document or many


class Receipt(Record):
    """What is known of a finished piece; it counts only for the job that it names."""

    job: str
    files: str = Field(description="digest of the sizes and times of change of the files that were read")
    shards: tuple[Shard, ...]
    documents_read: int = Field(ge=0)
    skipped: dict[str, int]
    cut: bool = Field(description="it ended because `most` tokens were reached")

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """Bytes of text of both splits."""
        return sum(shard.text_bytes for shard in self.shards)


@dataclass(frozen=True)
class Job:
    """All that a process needs to make the shards of one piece."""

    source: Source
    piece: int
    recipe: Recipe
    folder: DatasetDir
    most: int
    encoder: str
    trusting: bool = False  # a piece counts as made though its files are other copies, as on another machine

    @property
    def name(self) -> str:
        """Equal names mean equal shards, whichever encoder makes them."""
        return _digest(f"{self.recipe.model_dump_json()} {self.piece} {self.most}")

    @property
    def files(self) -> str:
        """Equal on one machine as long as nobody writes to the inputs."""
        return _digest(str([part.stamp for part in self.source.pieces[self.piece]]))


def _digest(content: str) -> str:
    return blake2b(content.encode(), digest_size=16).hexdigest()


def make_piece(job: Job) -> tuple[Receipt, bool]:
    """Make the shards of a piece and its receipt, unless they are there; the flag says they were."""
    receipt = finished(job)
    if receipt and (job.trusting or receipt.files == job.files):
        return receipt, True
    receipt = _encode(job)
    durable.write(job.folder.receipt(job.piece), receipt.model_dump_json())
    return receipt, False


def finished(job: Job) -> Receipt | None:
    """The receipt of a piece that was made for the same job, perhaps on another machine."""
    path = job.folder.receipt(job.piece)
    receipt = read(path, Receipt) if path.exists() else None
    return receipt if receipt and receipt.job == job.name else None


def _encode(job: Job) -> Receipt:
    """Tokenize a piece until it ends or its room does; each document ends with the end-of-text token."""
    made, encode = opened(job.encoder, job.folder.tokenizer_path)
    counts: Counter[str] = Counter()
    room, cut = job.most, False
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(job.folder, s, job.piece, dtype(made.vocab_size))) for s in SPLITS}
        for batch in _batches(_documents(job)):
            kept = [number for number, document in enumerate(batch) if document.place in writers]
            encoded = encode([batch[number].text for number in kept])
            ends = np.cumsum(encoded.lengths + 1)
            fit = int(np.searchsorted(ends, room, side="right"))
            cut = fit < len(kept)
            read_here = batch[: kept[fit]] if cut else batch
            counts.update(document.place for document in read_here)
            for split, writer in writers.items():
                rows = np.array([n < fit and batch[number].place == split for n, number in enumerate(kept)], dtype=bool)
                sizes = [document.size for document in read_here if document.place == split]
                writer.add(encoded.ended(rows, made.end), len(sizes), sum(sizes))
            room -= int(ends[fit - 1]) if fit else 0
            if cut:
                break
    shards = tuple(writer.shard() for writer in writers.values())
    skipped = {place: count for place, count in counts.items() if place not in writers}
    return Receipt(job=job.name, files=job.files, shards=shards, documents_read=counts.total(), skipped=skipped, cut=cut)


def _documents(job: Job) -> Iterator[Document]:
    """The documents of a piece, those that stand elsewhere already marked as such."""
    path = job.folder.twins(job.piece)
    twins = iter(np.load(path, allow_pickle=False)) if job.recipe.dedup else repeat(False)
    for document in documents(job.source, job.piece, job.recipe):
        yield Document("duplicate") if document.place in SPLITS and next(twins) else document


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents together until they have BATCH characters: enough to be quick, little enough for memory."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH or len(batch) >= BATCH >> 6:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest integer type that holds each id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"

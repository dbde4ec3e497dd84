"""One piece of a source becomes a shard for each split, and a receipt that says what is in them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from llamactl import durable
from llamactl.artifacts import DatasetDir, Recipe, Record, Shard, Split, read
from llamactl.corpus.shards import ShardWriter
from llamactl.corpus.sources import Source
from llamactl.encoders import opened
from llamactl.errors import BadData

SPLITS: tuple[Split, ...] = ("train", "val")

LONGEST_DOCUMENT = 1_000_000  # characters; what is longer goes on as the next document
BATCH = 1 << 20  # characters that are encoded at once, by one document or many


class Receipt(Record):
    """What is known of a finished piece; it counts only for the job that it names."""

    job: str
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

    @property
    def name(self) -> str:
        """Equal names mean equal shards, whichever encoder makes them."""
        stamps = [part.stamp for part in self.source.pieces[self.piece]]
        content = f"{self.recipe.model_dump_json()} {self.piece} {self.most} {stamps}"
        return blake2b(content.encode(), digest_size=16).hexdigest()


class Document(NamedTuple):
    """A text, its place (a split, or the reason why it is skipped), and its size in bytes."""

    place: str
    text: str = ""
    size: int = 0


def make_piece(job: Job) -> tuple[Receipt, bool]:
    """Make the shards of a piece and its receipt, unless they are there; the flag says they were."""
    path = job.folder.receipt(job.piece)
    if path.exists() and (receipt := read(path, Receipt)).job == job.name:
        return receipt, True
    receipt = _encode(job)
    durable.write(path, receipt.model_dump_json())
    return receipt, False


def _encode(job: Job) -> Receipt:
    """Tokenize a piece until it ends or its room does; each document ends with the end-of-text token."""
    made, encode = opened(job.encoder, job.folder.tokenizer_path.read_text("utf-8"))
    counts: Counter[str] = Counter()
    room, cut = job.most, False
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(job.folder, s, job.piece, dtype(made.vocab_size))) for s in SPLITS}
        for batch in _batches(documents(job.source, job.piece, job.recipe)):
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
    return Receipt(job=job.name, shards=shards, documents_read=counts.total(), skipped=skipped, cut=cut)


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


def documents(source: Source, piece: int, recipe: Recipe) -> Iterator[Document]:
    """The documents of a piece; raises BadData for more than `max_bad_docs` that can't be read.

    A document is held out when the hash of its text falls below `val_fraction`, wherever it stands;
    so is the very first, so that even the smallest dataset has something to validate on.
    """
    first, bad = piece == 0, 0
    for row in source.documents(piece, recipe.text_column):
        for document in _placed(row, recipe):
            if isinstance(document, BadData):
                bad += 1
                if bad > recipe.max_bad_docs:
                    raise document
                yield Document("unreadable")
            elif first and document.place in SPLITS:
                first = False
                yield document._replace(place="val")
            else:
                yield document


def _placed(row: str | BadData | None, recipe: Recipe) -> Iterator[Document | BadData]:
    """What a row of the source becomes: a document, or several when it is very long."""
    if isinstance(row, BadData):
        yield row
        return
    whole = row or ""
    if recipe.max_doc_bytes and len(whole.encode("utf-8", "surrogatepass")) > recipe.max_doc_bytes:
        yield Document("too long")
        return
    for start in range(0, len(whole) or 1, LONGEST_DOCUMENT):
        text = whole[start : start + LONGEST_DOCUMENT]
        if not text or text.isspace():
            yield Document("empty")
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            yield BadData("A document is not text.", f"It holds half a character: {error}.", "Leave it out: --max-bad-docs 1")
            continue
        rank = int.from_bytes(blake2b(data, digest_size=8).digest()) / 2**64
        yield Document("val" if rank < recipe.val_fraction else "train", text, len(data))


def dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest integer type that holds each id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"

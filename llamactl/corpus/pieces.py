"""Make one piece of a source into a shard per split, with a receipt of their contents and of what they were made from."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import InputFile, Recipe, Shard
from llamactl.corpus.documents import SPLITS, Document, read_piece
from llamactl.corpus.inputs import Hashed, describe_changes
from llamactl.corpus.shards import ShardWriter
from llamactl.corpus.sources import Piece, Source
from llamactl.errors import DataError
from llamactl.storage import atomic, locks
from llamactl.storage.records import Count, Record, open_file, read_record
from llamactl.tokenizer.encoders import open_tokenizer

BATCH = 1 << 20  # characters that are encoded at once, by one document or many
FORMAT = 3  # raise it when the same inputs and recipe give other shards than before
PATIENCE = 30.0  # seconds to wait for a process that makes the same piece, and may be about to be killed


class Origin(Record):
    """All that the shards of a piece depend on: equal origins mean equal shards, on any machine and with any encoder."""

    code: str = Field(description="the format of pieces, and the version of the encoder that others must agree with")
    recipe: Recipe
    piece: Count
    most: Count
    tokenizer: str = Field(description="sha256 of tokenizer.json")
    reading: str = Field(description="digest of which parts of the inputs are read, and how")
    inputs: tuple[InputFile, ...]
    duplicates: str = Field(description="digest of the marks of duplicates, which other pieces decide too")
    holdout: str = Field(description="digest of the rule of what is held out, which other pieces decide too")


class Receipt(Record):
    """The record of a finished piece, valid only for the origin that it names."""

    origin: Origin
    shards: tuple[Shard, ...]
    documents_read: Count
    skipped: dict[str, Count]
    skipped_bytes: dict[str, Count] = Field({}, description="bytes of what was left out, by reason, where they are known")
    cut: bool = Field(description="it ended because `most` tokens were reached")

    @property
    def tokens(self) -> int:
        """Sum the tokens of both splits."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """Sum the bytes of text of both splits."""
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
    tokenizer: str  # sha256 of the tokenizer.json that must be there
    inputs: Hashed  # the local files of the piece, by content
    duplicates: str = ""

    @cached_property
    def origin(self) -> Origin:
        """Return the origin of the piece's shards."""
        return Origin(
            code=f"{FORMAT}, tiktoken {version('tiktoken')}",
            # Inputs and tokenizer are compared by content, however they were typed.
            recipe=self.recipe.model_copy(update={"source": "", "tokenizer": ""}),
            piece=self.piece,
            most=self.most,
            tokenizer=self.tokenizer,
            reading=_reading(self.source.pieces[self.piece]),
            inputs=tuple(self.inputs.values()),
            duplicates=self.duplicates,
            holdout=self.source.holdout.digest if self.source.holdout else "",
        )


class Made(NamedTuple):
    """A receipt; `kept` if an earlier run made the piece, `stale` says why earlier work was not reused."""

    receipt: Receipt
    kept: bool
    stale: str = ""


def _reading(piece: Piece) -> str:
    """Hash how the parts are read: all of their fields except where the files are and when they were written."""
    # The content of a local file has a hash of its own; a hub file has none, and is identified by its location.
    names = [field.name for field in fields(piece[0]) if field.name not in ("location", "stamp")] if piece else []
    rows = [[getattr(part, name) for name in names] + [part.location if not part.stamp else ""] for part in piece]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def make_piece(job: Job) -> Made:
    """Make the shards of a piece and its receipt, unless they exist.

    A lock per piece excludes every other process that may make it: another share, or a worker that outlives a killed parent.
    """
    with locks.hold_lock(job.folder.piece_lock(job.piece), patience=PATIENCE):
        result = inspect_piece(job)
        if isinstance(result, Receipt):
            return Made(result, True)
        receipt = _encode(job)
        atomic.write_file(job.folder.receipt(job.piece), receipt.model_dump_json())
        return Made(receipt, False, result)


def inspect_piece(job: Job) -> Receipt | str:
    """Check a finished piece and every byte of its shards; return its receipt, or why it is not valid (empty: not made)."""
    path = job.folder.receipt(job.piece)
    if not os.path.lexists(path):
        return ""
    try:
        receipt = read_record(path, Receipt)
    except DataError:
        return "Its receipt is damaged."
    if reason := _difference(receipt.origin, job):
        return reason
    # A piece that another token limit did not cut short is the same piece; otherwise it is made again.
    if receipt.origin.most != job.most and (receipt.cut or receipt.tokens > job.most):
        return ""
    damaged = [shard.file for shard in receipt.shards if not _intact(job.folder, shard)]
    return f"{job.folder.path / damaged[0]} is missing or damaged." if damaged else receipt


def _difference(before: Origin, job: Job) -> str:
    """Say which of the things that shards depend on has changed; empty when none has."""
    now = job.origin
    # The token limit may differ: whether that matters depends on the receipt, not on the origin.
    if before == now.model_copy(update={"most": before.most}):
        return ""
    changed = before.recipe.differences(now.recipe)
    if options := changed - {"inputs"}:
        return f"It was made with other settings: {', '.join(sorted(options))}."
    if before.tokenizer != now.tokenizer:
        return f"It was made with a different tokenizer than {job.folder.tokenizer_path}."
    if files := describe_changes(before.inputs, job.inputs):
        return files
    if before.code != now.code:
        return f"It was made by a different version ({before.code}; now {now.code})."
    return "Files were added or removed." if changed else "It was made from different parts or duplicates."


def _intact(folder: DatasetDir, shard: Shard) -> bool:
    try:
        return _sha256(folder, folder.path / shard.file) == shard.sha256
    except (DataError, OSError):
        return False


def _sha256(folder: DatasetDir, path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path, folder.path) as file:
        while data := file.read(atomic.BUFFER):
            digest.update(data)
    return digest.hexdigest()


def _encode(job: Job) -> Receipt:
    """Tokenize a piece to its end or up to `most` tokens; each document ends with the end-of-text token."""
    tokenizer, encode = open_tokenizer(job.encoder, job.folder.tokenizer_path, job.tokenizer)
    counts: Counter[str] = Counter()
    place_bytes: Counter[str] = Counter()
    remaining, cut = job.most, False
    with ExitStack() as stack:
        writers = {
            s: stack.enter_context(ShardWriter(job.folder, s, job.piece, token_dtype(tokenizer.vocab_size))) for s in SPLITS
        }
        for batch in _batches(_documents(job)):
            kept = [number for number, document in enumerate(batch) if document.place in writers]
            encoded = encode([batch[number].text for number in kept])
            if tokenizer.lossless and int(tokenizer.byte_lengths[encoded.ids].sum()) != sum(
                batch[number].size for number in kept
            ):
                why = "The bytes of its tokens are not those of the text."
                raise DataError(f"{job.recipe.tokenizer} does not encode all of the text.", why, "Use another --tokenizer.")
            ends = np.cumsum(encoded.lengths + len(tokenizer.separator))
            fit = int(np.searchsorted(ends, remaining, side="right"))
            cut = fit < len(kept)
            read_here = batch[: kept[fit]] if cut else batch
            counts.update(document.place for document in read_here)
            place_bytes.update({place: _size(read_here, place) for place in {document.place for document in read_here}})
            for split, writer in writers.items():
                rows = np.array([n < fit and batch[number].place == split for n, number in enumerate(kept)], dtype=bool)
                sizes = [document.size for document in read_here if document.place == split]
                writer.add(encoded.with_separators(rows, tokenizer.separator), len(sizes), sum(sizes))
            remaining -= int(ends[fit - 1]) if fit else 0
            if cut:
                break
    shards = tuple(writer.shard() for writer in writers.values())
    skipped = {place: count for place, count in counts.items() if place not in writers}
    return Receipt(
        origin=job.origin,
        shards=shards,
        documents_read=counts.total(),
        skipped=skipped,
        skipped_bytes={place: place_bytes[place] for place in skipped if place_bytes[place]},
        cut=cut,
    )


def _size(documents: list[Document], place: str) -> int:
    return sum(document.size for document in documents if document.place == place)


def _documents(job: Job) -> Iterator[Document]:
    """Yield the documents of a piece, with duplicates of earlier ones replaced by a marker."""
    duplicate = iter(_marks(job)) if job.recipe.dedup else repeat(False)
    for document in read_piece(job.source, job.piece, job.recipe):
        # A file that has grown since the marks were made has more documents; that it changed is found at its end.
        is_duplicate = document.place in SPLITS and next(duplicate, False)
        yield Document("duplicate", size=document.size) if is_duplicate else document


def marks_digest(folder: DatasetDir, piece: int) -> str:
    """Hash the marks of a piece's duplicates on disk; raises DataError when there are none."""
    return _sha256(folder, folder.duplicates_path(piece))


def _marks(job: Job) -> np.ndarray:
    """Read which documents are duplicates (bool); raises DataError when another process has replaced the marks."""
    if marks_digest(job.folder, job.piece) != job.duplicates:
        why = "Another process looked for duplicates in other inputs."
        raise DataError(f"{job.folder.duplicates_path(job.piece)} was replaced.", why, "Run the same command again.")
    marks: np.ndarray = np.load(job.folder.duplicates_path(job.piece), allow_pickle=False)
    return marks


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents into batches of about BATCH characters: enough to encode fast, few enough for memory."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        # Also a limit on the number of documents, as very short ones have a cost each.
        if size >= BATCH or len(batch) >= BATCH >> 6:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the smallest integer type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"

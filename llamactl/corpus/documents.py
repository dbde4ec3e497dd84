"""Documents of a source, each assigned to a split or skipped for a reason."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from llamactl.corpus.dataset_info import Recipe, Split
from llamactl.corpus.holdout import Holdout, cut_end, holdout_by_hash, plan_holdout
from llamactl.corpus.sources import Source
from llamactl.corpus.splitting import TooLong, cut_long
from llamactl.corpus.unreadable import Unreadable
from llamactl.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "val")


class Document(NamedTuple):
    """A text, its place (a split, or the reason why it is skipped), its size in bytes, and its 64-bit hash."""

    place: str
    text: str = ""
    size: int = 0
    rank: int = 0


def with_holdout(source: Source, recipe: Recipe) -> Source:
    """Add the hold-out rule to a source; a small source is read once to find it."""
    if source.mixed:
        return replace(source, mixed=tuple(with_holdout(component, recipe) for component in source.mixed))
    # A stream from the hub is not read twice: size 0 means that the rule goes by hash alone.
    size = 0 if any(part.kind == "hub" for part in source.parts) else source.size
    return replace(source, holdout=plan_holdout(_sizes(source, recipe), recipe.val_fraction, size, recipe.dedup))


def read_piece(source: Source, piece: int, recipe: Recipe) -> Iterator[Document]:
    """Yield the documents of a piece; raises DataError when more than `max_bad_docs` of them can't be read."""
    holdout = source.holdout or holdout_by_hash(recipe.val_fraction)
    first, bad = piece == source.first_piece and holdout.first, 0
    for row in source.documents(piece, recipe.text_column, recipe.max_doc_bytes):
        for document in _split_row(row, recipe):
            if isinstance(document, DataError):
                bad += 1
                if bad > recipe.max_bad_docs:
                    raise document
                yield Document("unreadable", size=document.lost if isinstance(document, Unreadable) else 0)
            elif document.place not in SPLITS:
                yield document
            else:
                yield from _assign_split(document, holdout, first)
                # Only the first document with text is held out whatever its hash is.
                first = False


def _sizes(source: Source, recipe: Recipe) -> Iterator[tuple[int, int]]:
    """Yield hashes and bytes of the documents, up to about as many as `max_tokens` holds."""
    # About four bytes of English make a BPE token; without a limit everything is read.
    remaining = int(recipe.max_tokens * source.weight) * (1 if recipe.tokenizer == "bytes" else 4) or sys.maxsize
    for piece in range(len(source.pieces)):
        for row in source.documents(piece, recipe.text_column, recipe.max_doc_bytes):
            for document in _split_row(row, recipe):
                if isinstance(document, Document) and document.place in SPLITS:
                    yield document.rank, document.size
                    remaining -= document.size
                    if remaining <= 0:
                        return


def _assign_split(document: Document, holdout: Holdout, first: bool) -> Iterator[Document]:
    """Assign a document to a split, or cut it into a part for each."""
    if holdout.cuts(document.rank, document.size):
        train, val = cut_end(document.text, holdout.share)
        # Each part must hold text; otherwise the document is held out, or not, in one part.
        if train and val and not train.isspace() and not val.isspace():
            yield _new_document("train", train)
            yield _new_document("val", val)
            return
    yield document._replace(place="val" if first or holdout.holds(document.rank) else "train")


def _new_document(place: str, text: str) -> Document:
    data = text.encode()
    return Document(place, text, len(data), xxh3_64_intdigest(data))  # 25 times as fast as blake2b


def _split_row(row: str | TooLong | DataError | None, recipe: Recipe) -> Iterator[Document | DataError]:
    """Convert a row of the source to a document (of the training split, so far), or to several when it is very long."""
    if isinstance(row, DataError):
        yield row
        return
    if isinstance(row, TooLong):
        yield Document("too long", size=row.size)
        return
    content = row or ""
    if recipe.max_doc_bytes and (size := len(content.encode("utf-8", "surrogatepass"))) > recipe.max_doc_bytes:
        yield Document("too long", size=size)
        return
    for text in cut_long(content):
        if not text or text.isspace():
            yield Document("empty", size=len(text.encode()))
            continue
        try:
            yield _new_document("train", text)
        # JSON can spell half of a surrogate pair (\ud800), which no UTF-8 text may contain.
        except UnicodeEncodeError as error:
            lost = len(text.encode("utf-8", "replace"))
            why = f"It holds half a character: {error.reason}."
            yield Unreadable("A document is not text.", why, "Leave it out: --max-bad-docs 1", lost)

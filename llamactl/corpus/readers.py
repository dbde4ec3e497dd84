"""Readers of documents, one function per kind of file; each is a generator in bounded memory."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from llamactl.corpus import csv_files, objects, tables
from llamactl.corpus.columns import describe_value, missing_column, read_value
from llamactl.corpus.kinds import KINDS, PACKED, READABLE, describe_ending, describe_magic, find_kind, split_endings
from llamactl.corpus.parts import Documents, Part
from llamactl.corpus.splitting import TooLong, split_documents
from llamactl.corpus.streams import Decoded, read_head
from llamactl.corpus.text_files import is_text
from llamactl.corpus.unreadable import SKIP, Unreadable
from llamactl.errors import DataError


def split_into_parts(path: Path) -> list[Part]:
    """Split a file into parts: row groups of parquet, otherwise all of it; raises DataError for a file without text."""
    reader = find_kind(path) or _text_or_refuse(path)
    stamp = file_stamp(path)
    if reader == "parquet":
        sizes = tables.row_groups(str(path))
        return [Part(reader, str(path), size, index, stamp=stamp) for index, size in enumerate(sizes)]
    return [Part(reader, str(path), stamp[0], stamp=stamp)]


def _text_or_refuse(path: Path) -> str:
    """Accept a file with an unknown name as text if its first bytes are text; raises DataError that says what it is."""
    other = describe_ending(path)
    ending, packed = split_endings(path)
    if packed and ending not in KINDS and other is None:
        what = f"{path}: its name does not say what is packed in it."
        raise DataError(what, "", f"Rename it, such as to {path.name.removesuffix(path.suffix)}.txt{packed}")
    if other is None:
        try:
            head = read_head(path)
        except OSError as error:
            raise DataError(f"{path} can't be read.", f"{error.strerror or error}.") from error
        other = describe_magic(head)
        if other is None and path.suffix.lower() not in PACKED and is_text(head):
            return "text"
    if other:
        raise DataError(f"{path} can't be read.", f"It is {other.name}.", other.way_out(str(path)))
    why = f"Neither its name nor its first bytes are those of text. What can be read: {READABLE}."
    raise DataError(f"{path} can't be read.", why, f"If it is text, copy it to {path.name}.txt")


def read_part(part: Part, text_column: str) -> Documents:
    """Yield the documents of a part; raises DataError when the file has changed since it was planned."""
    import pyarrow

    try:
        yield from READERS[part.kind](part, text_column)
    except Unreadable as error:
        yield error
    # These are what a truncated or damaged file makes the libraries raise: the rest counts as one unreadable document.
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        reason = f"{getattr(error, 'strerror', None) or error}".rstrip(".")
        yield Unreadable(f"{part.location} can't be read.", f"{reason}.", SKIP, part.size)
    # Checked after the last document: a file that was written to may have given half of each version.
    if part.stamp and file_stamp(Path(part.location)) != part.stamp:
        raise DataError(f"{part.location} has changed while it was read.", "", "Run the same command again.")


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return size, mtime, ctime, inode and device of a file, by which a write to it is noticed; raises DataError.

    The ctime is included because `touch -d` and `cp -p` set the mtime back. Only content identifies a file on another machine.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read.", f"{error.strerror}.") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def read_text(part: Part, text_column: str) -> Documents:
    """Read a text file, cut into documents by the part's rule."""
    source = Decoded(part)
    for document in split_documents(source, part.split, part.cut, part.max_doc_bytes):
        yield document if isinstance(document, TooLong) else source.check(document, part.location)


def read_hub(part: Part, text_column: str) -> Documents:
    """Stream a shard of a dataset from the Hugging Face hub; raises DataError when it lacks the column."""
    from llamactl.corpus.hub import stream_rows

    with closing(stream_rows(part)) as rows:
        for row in rows:
            if text_column not in row:
                raise missing_column(text_column, {name: describe_value(value) for name, value in row.items()}, part.location)
            yield read_value(row[text_column], f"A row of {part.location}")


READERS: dict[str, Callable[[Part, str], Documents]] = {
    "text": read_text,
    "jsonl": objects.read_jsonl,
    "json": objects.read_json,
    "csv": csv_files.read_csv,
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
    "hub": read_hub,
}


def column_kinds(part: Part) -> dict[str, str]:
    """Return the types of a file's columns or keys as far as its head tells; empty for text."""
    match part.kind:
        case "parquet" | "arrow":
            return tables.table_kinds(part)
        case "csv":
            return csv_files.read_csv_kinds(part)
        case "jsonl" | "json":
            return objects.peek_row(part)
    return {}

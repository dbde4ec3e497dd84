"""How documents are read from a file: one function per kind of file, each a generator in bounded memory."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llamactl.errors import BadData

# A row's text, None where it has none, or why it can't be read: whoever asks decides whether that is an error.
Documents = Iterator[str | BadData | None]

LONGEST_TEXT = 1_000_000  # characters of a text file; what is longer goes on as the next document
LONGEST_LINE = 16 << 20  # bytes of a line of JSON, which has to be in memory whole
ROW_BATCH = 16 << 20  # bytes of a parquet column that are unpacked at once


@dataclass(frozen=True)
class Part:
    """A file, or a piece of one: all that a worker process needs to read it."""

    kind: str
    location: str
    size: int
    index: int = 0
    cut: int = LONGEST_TEXT
    revision: str = ""
    config: str = ""
    stamp: tuple[int, int] = (0, 0)  # size and time of change of the file when it was planned


def kind(path: Path) -> str:
    """Which reader a file's name asks for; empty when none."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    return KINDS.get(suffixes[-1].lower(), "") if suffixes else ""


def parts(path: Path) -> list[Part]:
    """The parts of a file: row groups of parquet, else the whole; raises BadData for a name of unknown kind."""
    reader = kind(path)
    if not reader:
        raise BadData(f"{path} can't be read.", f"Its name must end in {', '.join(KINDS)}, or one of those with .gz or .zst.")
    stamp = _stamp(path)
    if reader == "parquet":
        groups = _parquet(path).metadata
        sizes = [groups.row_group(index).total_byte_size for index in range(groups.num_row_groups)]
        return [Part(reader, str(path), size, index, stamp=stamp) for index, size in enumerate(sizes)]
    return [Part(reader, str(path), stamp[0], stamp=stamp)]


def documents(part: Part, text_column: str) -> Documents:
    """The documents of a part; raises BadData when the file has changed since it was planned."""
    try:
        yield from READERS[part.kind](part, text_column)
    except UnicodeDecodeError as error:
        yield BadData(f"{part.location} is not UTF-8 text.", f"{error}.", SKIP)
    except (OSError, EOFError) as error:
        yield BadData(f"{part.location} can't be read.", f"{error}.", SKIP)
    if any(part.stamp) and _stamp(Path(part.location)) != part.stamp:
        raise BadData(f"{part.location} has changed while it was read.", "", "Run the same command again.")


SKIP = "Leave such documents out, up to N of them: --max-bad-docs N"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise BadData(f"{path} can't be read.", f"{error.strerror}.") from error
    return found.st_size, found.st_mtime_ns


def text(part: Part, text_column: str) -> Documents:
    """A .txt file: one document, or several, cut at the first blank line after `part.cut` characters."""
    with io.TextIOWrapper(_open(part.location), encoding="utf-8-sig", newline="") as file:
        lines: list[str] = []
        length, whole = 0, True
        while line := file.readline(LONGEST_TEXT):
            lines.append(line)
            length += len(line)
            if (length >= part.cut and not line.strip()) or length >= LONGEST_TEXT:
                yield "".join(lines)
                lines, length, whole = [], 0, False
        if lines or whole:
            yield "".join(lines)


def jsonl(part: Part, text_column: str) -> Documents:
    """A .jsonl file: an object a line, with the text under a key."""
    with _open(part.location) as file:
        for number, line in enumerate(_lines(file), start=1):
            place = f"{part.location}, line {number}"
            if line is None:
                yield BadData(
                    f"{place}, is longer than {LONGEST_LINE >> 20} MiB.", "It would have to be in memory whole.", SKIP
                )
            elif line.strip():
                yield _field(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, text_column, place)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines, None for each that is too long."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield None


def _field(line: bytes, key: str, place: str) -> str | BadData | None:
    try:
        row: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadData(f"{place}, is not UTF-8 text.", f"{error}.", SKIP)
    except (ValueError, RecursionError) as error:
        return BadData(f"{place}, is not JSON.", f"{error}.", SKIP)
    if not isinstance(row, dict) or key not in row:
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        return BadData(f"{place}, has no {key!r}.", f"It has: {keys}.", "Name the key of the text: --text-column KEY")
    if not isinstance(row[key], str | None):
        return BadData(f"{place}: {key!r} is not text but {type(row[key]).__name__}.", "", SKIP)
    value: str | None = row[key]
    return value


def parquet(part: Part, text_column: str) -> Documents:
    """A row group of a .parquet file."""
    import pyarrow

    file = _parquet(Path(part.location))
    columns = {field.name: field.type for field in file.schema_arrow}
    if text_column not in columns:
        fix = "Name the column of the text: --text-column COLUMN"
        raise BadData(f"{part.location} has no column {text_column!r}.", f"It has: {', '.join(columns)}.", fix)
    kind = columns[text_column]
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)):
        raise BadData(f"{part.location}: column {text_column!r} is not text but {columns[text_column]}.")
    rows = max(1, file.metadata.row_group(part.index).num_rows)
    batch_size = max(1, min(1024, ROW_BATCH * rows // max(1, part.size)))
    for batch in file.iter_batches(batch_size, row_groups=[part.index], columns=[text_column]):
        try:
            yield from batch.column(0).to_pylist()
        except UnicodeDecodeError:
            yield from _row_by_row(batch.column(0), part.location)


def _row_by_row(column: Any, location: str) -> Documents:
    """Rows of a column in which some are not UTF-8."""
    for value in column:
        try:
            yield value.as_py()
        except UnicodeDecodeError as error:
            yield BadData(f"A row of {location} is not UTF-8 text.", f"{error}.", SKIP)


def hub(part: Part, text_column: str) -> Documents:
    """A shard of a dataset on the Hugging Face hub, streamed."""
    from llamactl.corpus.hub import stream

    with closing(stream(part)) as rows:
        for row in rows:
            if text_column not in row:
                fix = "Name the column of the text: --text-column COLUMN"
                raise BadData(f"{part.location} has no column {text_column!r}.", f"It has: {', '.join(row)}.", fix)
            yield row[text_column]


KINDS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
READERS: dict[str, Callable[[Part, str], Documents]] = {"text": text, "jsonl": jsonl, "parquet": parquet, "hub": hub}


def _open(location: str) -> BinaryIO:
    """A file, unpacked as its name says."""
    import pyarrow

    compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(location).suffix)
    return io.BufferedReader(pyarrow.input_stream(location, compression=compression), 1 << 20)


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"{path} is not a whole parquet file.", f"{error}.") from error

"""How documents are read from a file: one function per kind of file, each a generator in bounded memory."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamactl.errors import BadData

Documents = Iterator[str | None]

LONGEST_DOCUMENT = 1_000_000  # characters of a text file; what is longer goes on as the next document


@dataclass(frozen=True)
class Part:
    """A file, or a piece of one: all that a worker process needs to read it."""

    kind: str
    location: str
    size: int
    index: int = 0
    cut: int = LONGEST_DOCUMENT
    revision: str = ""
    config: str = ""


def kind(path: Path) -> str:
    """Which reader a file's name asks for; empty when none."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    return KINDS.get(suffixes[-1].lower(), "") if suffixes else ""


def parts(path: Path) -> list[Part]:
    """The parts of a file: row groups of parquet, else the whole; raises BadData for a name of unknown kind."""
    reader = kind(path)
    if not reader:
        raise BadData(f"{path} can't be read.", f"Its name must end in {', '.join(KINDS)}, or one of those with .gz or .zst.")
    if reader == "parquet":
        groups = _parquet(path).metadata
        return [Part(reader, str(path), groups.row_group(i).total_byte_size, i) for i in range(groups.num_row_groups)]
    return [Part(reader, str(path), path.stat().st_size)]


def documents(part: Part, text_column: str) -> Documents:
    """The documents of a part, None where a row has no text; raises BadData that names the file."""
    try:
        yield from READERS[part.kind](part, text_column)
    except UnicodeDecodeError as error:
        raise BadData(f"{part.location} is not UTF-8 text.", f"{error}.") from error
    except (OSError, EOFError) as error:
        raise BadData(f"{part.location} can't be read.", f"{error}.") from error


def text(part: Part, text_column: str) -> Documents:
    """A .txt file: one document, or several, cut at the first blank line after `part.cut` characters."""
    with _open(part.location) as file:
        lines: list[str] = []
        length, whole = 0, True
        while line := file.readline(LONGEST_DOCUMENT):
            lines.append(line)
            length += len(line)
            if (length >= part.cut and not line.strip()) or length >= LONGEST_DOCUMENT:
                yield "".join(lines)
                lines, length, whole = [], 0, False
        if lines or whole:
            yield "".join(lines)


def jsonl(part: Part, text_column: str) -> Documents:
    """A .jsonl file: an object a line, with the text under a key."""
    with _open(part.location) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _field(line, text_column, f"{part.location}, line {number}")


def _field(line: str, key: str, place: str) -> str | None:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise BadData(f"{place}, is not JSON.", f"{error}.") from error
    if not isinstance(row, dict) or key not in row:
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise BadData(f"{place}, has no {key!r}.", f"It has: {keys}.", "Name the key of the text: --text-column KEY")
    if not isinstance(row[key], str | None):
        raise BadData(f"{place}: {key!r} is not text but {type(row[key]).__name__}.")
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
    if not (pyarrow.types.is_string(columns[text_column]) or pyarrow.types.is_large_string(columns[text_column])):
        raise BadData(f"{part.location}: column {text_column!r} is not text but {columns[text_column]}.")
    for batch in file.iter_batches(batch_size=256, row_groups=[part.index], columns=[text_column]):
        yield from batch.column(0).to_pylist()


def hub(part: Part, text_column: str) -> Documents:
    """A shard of a dataset on the Hugging Face hub, streamed."""
    from llamactl.corpus.hub import stream

    for row in stream(part):
        if text_column not in row:
            fix = "Name the column of the text: --text-column COLUMN"
            raise BadData(f"{part.location} has no column {text_column!r}.", f"It has: {', '.join(row)}.", fix)
        yield row[text_column]


KINDS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
READERS: dict[str, Callable[[Part, str], Documents]] = {"text": text, "jsonl": jsonl, "parquet": parquet, "hub": hub}


def _open(location: str) -> io.TextIOWrapper:
    """A text file, unpacked as its name says, without its byte order mark, line ends as they are."""
    import pyarrow

    compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(location).suffix)
    return io.TextIOWrapper(pyarrow.input_stream(location, compression=compression), encoding="utf-8-sig", newline="")


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"{path} is not a whole parquet file.", f"{error}.") from error

"""Readers of tables: parquet, Arrow files and streams. One column at a time, in batches of bounded size in memory."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from llamactl.corpus.arrow_sizes import unpacked_sizes
from llamactl.corpus.columns import CONVERSATIONS, ROLES, SAYINGS, list_columns, missing_column, read_value
from llamactl.corpus.streams import Allowance, open_regular
from llamactl.corpus.unreadable import SKIP, Unreadable
from llamactl.errors import DataError

if TYPE_CHECKING:
    from llamactl.corpus.parts import Documents, Part

ROW_BATCH = 16 << 20  # bytes of a parquet column that are unpacked at once
WHOLE_GROUP = 64 << 20  # bytes of a row group below which its dictionary is kept as one, with each value in memory once
LARGEST_BATCH = 256 << 20  # bytes that a batch may become, were each of its rows the longest value of the dictionary
LARGEST_MESSAGE = 1 << 30  # bytes of a batch of an Arrow file, which is unpacked at once


def read_parquet(part: "Part", text_column: str) -> "Documents":
    """Read a row group of a .parquet file; raises DataError for a missing column or a decompression bomb."""
    with _parquet(part.location) as file:
        kinds = describe_schema(file.schema_arrow)
        _check_column(text_column, kinds, file.schema_arrow, part.location)
        group = file.metadata.row_group(part.index)
        columns = [group.column(index) for index in range(group.num_columns)]
        chunks = [chunk for chunk in columns if chunk.path_in_schema.split(".")[0] == text_column]
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        allowance = Allowance(part.location, part.stamp[0])
        # The footer tells the size, so a bomb is refused before a page is unpacked.
        allowance.take(size)
    # With its dictionary kept, a repeated value is in memory once, however many rows have it.
    repeated = size <= WHOLE_GROUP and any(chunk.has_dictionary_page for chunk in chunks)
    names = [chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"] if repeated else []
    with _parquet(part.location, names) as file:
        rows = group.num_rows if repeated else _batch_size(chunks, group.num_rows, size)
        for batch in file.iter_batches(max(1, rows), row_groups=[part.index], columns=[text_column]):
            yield from _column(batch.column(0), part.location, allowance)


def read_parquet_rows(part: "Part", columns: Collection[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a row group, with those of `columns` that it has; None for a row that is not UTF-8.

    Raises DataError for a file without any of them or one that is damaged, and for a decompression bomb.
    """
    import pyarrow

    with _parquet(part.location) as file:
        names = [name for name in file.schema_arrow.names if name in columns]
        if not names:
            why = f"It has: {list_columns(file.schema_arrow.names)}."
            raise DataError(f"{part.location} has no column of conversations.", why, f"Columns are {', '.join(columns)}.")
        group = file.metadata.row_group(part.index)
        all_chunks = (group.column(index) for index in range(group.num_columns))
        chunks = [chunk for chunk in all_chunks if chunk.path_in_schema.split(".")[0] in names]
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        Allowance(part.location, part.stamp[0]).take(size)
        try:
            for batch in file.iter_batches(_batch_size(chunks, group.num_rows, size), row_groups=[part.index], columns=names):
                yield from (_whole_row(batch, number) for number in range(len(batch)))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{part.location} can't be read.", f"{error}.", "Write it again, or leave it out.") from error


def _whole_row(batch: Any, number: int) -> dict[str, Any] | None:
    try:
        return {name: batch.column(name)[number].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return None


def _batch_size(chunks: list[Any], rows: int, size: int) -> int:
    """Return the number of rows per batch, small enough even if each row is the longest value of a dictionary."""
    packed = max(1, sum(chunk.total_compressed_size for chunk in chunks))
    pages = [chunk.data_page_offset - chunk.dictionary_page_offset for chunk in chunks if chunk.has_dictionary_page]
    # A dictionary page may hold one value only; its packed size times the compression bounds that value, with a margin.
    longest = min(size, max(pages, default=0) * 4 * max(1, size // packed))
    return int(max(1, min(1024, ROW_BATCH * rows // max(1, size), LARGEST_BATCH // max(1, longest))))


def read_arrow(part: "Part", text_column: str) -> "Documents":
    """Read an Arrow file or stream as written by Feather, datasets or pyarrow; raises DataError."""
    with _arrow(part.location) as source:
        _check_column(text_column, describe_schema(source.schema), source.schema, part.location)
        index = source.schema.get_field_index(text_column)
        allowance = Allowance(part.location, part.size)
        for batch in source:
            column = batch.column(index)
            _validate(column)
            step = max(1, ROW_BATCH * len(column) // max(1, column.nbytes))
            for start in range(0, len(column), step):
                yield from _column(column.slice(start, step), part.location, allowance)


def _validate(column: Any) -> None:
    """Check that no offset or index is out of bounds, as pyarrow trusts them; raises ArrowException. UTF-8 is not checked."""
    from pyarrow import binary, large_binary, types

    # A view as bytes has the same offsets, but no check of UTF-8: that is done per row, so that one bad row is one loss.
    plain = {types.is_string: binary, types.is_large_string: large_binary}
    as_bytes = next((kind() for is_kind, kind in plain.items() if is_kind(column.type)), None)
    (column.view(as_bytes) if as_bytes else column).validate(full=True)


def describe_schema(schema: Any) -> dict[str, str]:
    """Return the type of each column, in the terms of `choose_column`."""
    return {field.name: _describe_type(field.type) for field in schema}


def table_kinds(part: "Part") -> dict[str, str]:
    """Return the types of a table file's columns."""
    if part.kind == "parquet":
        with _parquet(part.location) as file:
            return describe_schema(file.schema_arrow)
    with _arrow(part.location) as source:
        return describe_schema(source.schema)


def row_groups(location: str) -> list[int]:
    """Return the unpacked bytes of each row group of a .parquet file."""
    with _parquet(location) as file:
        return [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]


def _describe_type(kind: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _describe_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_null(kind):
        return "nothing"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_list_view(kind):
        inner = kind.value_type
        if types.is_struct(inner):
            names = {field.name for field in inner}
            return "messages" if names & set(ROLES) and names & set(SAYINGS) else str(kind)
        return {"text": "texts", "nothing": "nothing"}.get(_describe_type(inner), str(kind))
    return str(kind)


def _check_column(column: str, kinds: dict[str, str], schema: Any, location: str) -> None:
    """Raise DataError for a column that does not exist or holds no text."""
    from pyarrow import types

    if column not in kinds:
        raise missing_column(column, kinds, location)
    if kinds[column] in ("text", "texts", "messages", "nothing"):
        return
    kind = schema.field(column).type
    while types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    why = f"Its fields are: {', '.join(field.name for field in kind)}." if types.is_struct(kind) else ""
    others = [name for name, found in kinds.items() if found in ("text", "texts", *CONVERSATIONS)]
    fix = f"Columns of text: {', '.join(others[:9])}; name one: --text-column {others[0]}" if others else ""
    raise DataError(f"{location}: column {column!r} is not text but {schema.field(column).type}.", why, fix)


def _column(column: Any, location: str, allowance: Allowance) -> "Documents":
    """Yield the texts of a column; a value of a dictionary is converted only once."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        values = list(_texts(column.dictionary, location))
        for place in column.indices.to_pylist():
            text = None if place is None else values[place]
            # A dictionary's value counts once per row: a small file may name a long value a million times.
            allowance.take(len(text) if isinstance(text, str) else 0)
            yield text
    elif types.is_nested(column.type):
        for row in column:
            text = _row(row, location)
            allowance.take(len(text) if isinstance(text, str) else 0)
            yield text
    else:
        yield from _texts(column, location)


def _texts(column: Any, location: str) -> "Documents":
    """Yield the values of a column of strings, one by one if some are not UTF-8."""
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        for value in column:
            yield _row(value, location)


def _row(value: Any, location: str) -> str | DataError | None:
    try:
        return read_value(value.as_py(), f"A row of {location}")
    except UnicodeDecodeError as error:
        lost = len(error.object)
        return Unreadable(f"A row of {location} is not UTF-8 text.", f"{error.reason}, at byte {error.start:,}.", SKIP, lost)


@contextmanager
def _parquet(location: str, repeated: list[str] | None = None) -> Iterator[Any]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_regular(location) as opened:
        try:
            file = ParquetFile(opened, page_checksum_verification=True, read_dictionary=repeated or None)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{location} is not a complete parquet file.", f"{error}.") from error
        yield file


@contextmanager
def _arrow(location: str) -> Iterator[Any]:
    import pyarrow
    from pyarrow import ipc

    with open_regular(location) as opened:
        head = opened.read(6)
        opened.seek(0)
        if head.startswith(b"FEA1"):
            why = "It is Feather version 1, which pyarrow no longer writes."
            raise DataError(f"{location} can't be read.", why, "Write it as .parquet or .jsonl.")
        is_file = head == b"ARROW1"
        try:
            # A file is a stream between two marks; its footer, which says where batches are, may say what it likes.
            expected = ipc.open_file(opened).num_record_batches if is_file else None
            opened.seek(start := 8 if is_file else 0)
            _check_sizes(opened, location)
            opened.seek(start)
            yield _Batches(ipc.open_stream(opened), expected)
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise DataError(f"{location} is not a complete Arrow file.", f"{error}.") from error


def _check_sizes(file: BinaryIO, location: str) -> None:
    """Raise DataError for an Arrow file that would unpack to too much, ValueError for a damaged one."""
    allowance = Allowance(location, os.fstat(file.fileno()).st_size)
    for size in unpacked_sizes(file):
        allowance.take(size)
        if size > LARGEST_MESSAGE:
            why = f"One of its batches unpacks to {size:,} bytes in one step."
            raise DataError(f"{location} is refused.", why, "Write it with fewer rows in a batch, or as .parquet.")


class _Batches:
    """The batches of an Arrow stream; raises ValueError if their number is not the one in the footer."""

    def __init__(self, stream: Any, expected: int | None) -> None:
        self._stream, self._expected = stream, expected
        self.schema = stream.schema

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in self._stream:
            count += 1
            yield batch
        if self._expected not in (None, count):
            raise ValueError(f"it has {count} batches where its footer names {self._expected}")

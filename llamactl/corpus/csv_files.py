"""Readers of .csv and .tsv files as in RFC 4180: fields that contain a separator are quoted, and may span lines."""

import csv as reader
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from llamactl.corpus.columns import missing_column
from llamactl.corpus.streams import Decoded, read_lines
from llamactl.corpus.unreadable import SKIP, Unreadable
from llamactl.errors import DataError

if TYPE_CHECKING:
    from llamactl.corpus.parts import Documents, Part

LONGEST_CELL = 16 << 20  # characters of a row


def read_csv(part: "Part", text_column: str) -> "Documents":
    """Read a .csv or .tsv file, whose first row names the columns; raises DataError when `text_column` is not one of them."""
    source = Decoded(part)
    rows = _csv_rows(source, part.location)
    header, _ = next(rows, ([], 0))
    if isinstance(header, Unreadable):
        raise DataError(header.what, header.why)
    if text_column not in header:
        if header:
            raise missing_column(text_column, dict.fromkeys(header, ""), part.location)
        return
    index = header.index(text_column)
    for number, (row, size) in enumerate(rows, start=2):
        place = f"{part.location}, row {number:,}"
        if isinstance(row, Unreadable):
            yield row
        elif len(row) != len(header):
            why = f"It has {len(row)} fields; the first row names {len(header)}. A field with a separator needs quotes."
            yield Unreadable(f"{place}, can't be read.", why, SKIP, size)
        else:
            yield source.check(row[index], f"{place},")


def read_csv_kinds(part: "Part") -> dict[str, str]:
    """Return the type of each column of a CSV file, "number" or "text", judged by its first rows."""
    rows = _csv_rows(Decoded(part), part.location)
    header, _ = next(rows, ([], 0))
    if isinstance(header, Unreadable):
        return {}
    # Twenty rows are enough to tell numbers from text without reading the whole file.
    shown = [row for (row, _), _ in zip(rows, range(20), strict=False) if isinstance(row, list) and len(row) == len(header)]
    return {name: _describe_cells([row[place] for row in shown]) for place, name in enumerate(header)}


def _describe_cells(cells: list[str]) -> str:
    def number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    return "number" if cells and all(number(cell) for cell in cells) else "text"


def _csv_rows(source: Decoded, location: str) -> Iterator[tuple[list[str] | Unreadable, int]]:
    """Yield rows and their sizes in bytes."""
    # The csv module refuses fields of more than 128 KiB unless told otherwise.
    reader.field_size_limit(LONGEST_CELL)
    lines = _Lines(source, location)
    first = next(lines, "")
    # The name may end in .tsv.gz or the like; other files are judged by the separator in their header.
    delimiter = "\t" if ".tsv" in location.lower()[-8:] else next((sign for sign in ",\t;" if sign in first), ",")
    rows = reader.reader(chain([first] if first else [], lines), delimiter=delimiter, strict=True, quoting=reader.QUOTE_MINIMAL)
    while True:
        # Before the first row, the header line that was read to find the separator counts for that row.
        before = lines.taken if rows.line_num else 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except reader.Error as error:
            why = f"Line {rows.line_num:,}: {error}."
            yield Unreadable(f"{location}, a row can't be read.", why, SKIP, lines.taken - before), 0
            continue
        except Unreadable as error:
            yield error, 0
            continue
        if row:
            yield row, lines.taken - before


class _Lines:
    """The lines of a file, and how many bytes were taken. One that is too long raises Unreadable, and the next call reads on.

    That is why it is no generator, which an error ends; the csv module begins a new row after one.
    """

    def __init__(self, source: Decoded, location: str) -> None:
        self._lines, self._location = read_lines(source, LONGEST_CELL), location
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if isinstance(line, int):
            self.taken += line + 1
            raise Unreadable(f"{self._location} has a line that is longer than {LONGEST_CELL >> 20} MiB.", lost=line)
        self.taken += len(line.encode("utf-8", "replace")) + 1
        return f"{line}\n"

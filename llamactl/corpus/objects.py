"""Rows of JSON: one object per line, one array, or one object that holds a list; at most one row is in memory."""

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llamactl.corpus.columns import describe_value, read_value
from llamactl.corpus.streams import Decoded, read_lines
from llamactl.corpus.unreadable import Unreadable
from llamactl.errors import DataError

if TYPE_CHECKING:
    from llamactl.corpus.parts import Documents, Part

LONGEST_ROW = 16 << 20  # characters of a line or a value, which has to be in memory whole
# Commas are skipped like spaces: a missing or extra one does not change the rows.
_SPACE = re.compile(r"[\s,]*")


def read_jsonl(part: "Part", text_column: str) -> "Documents":
    """Read a .jsonl file: one object per line with the text under a key, or one string per line."""
    source = Decoded(part)
    for number, line in enumerate(read_lines(source, LONGEST_ROW), start=1):
        place = f"{part.location}, line {number}"
        if isinstance(line, int):
            why = "A row must fit in memory."
            yield Unreadable(f"{place}, is longer than {LONGEST_ROW >> 20} MiB.", why, lost=line)
        elif line and not line.isspace():
            yield _read_line(source.check(line, f"{place},"), text_column, place)


def _read_line(line: str | Unreadable, key: str, place: str) -> str | DataError | None:
    if isinstance(line, Unreadable):
        return line
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"{place}, is not JSON.", f"{error}.", lost=len(line.encode("utf-8", "replace")))
    return _read_row(row, key, place, len(line.encode("utf-8", "replace")))


def _read_row(row: Any, key: str, place: str, size: int) -> str | DataError | None:
    if isinstance(row, dict) and key in row:
        return read_value(row[key], f"{place}: {key!r}", size)
    keys = ", ".join(list(row)[:20]) if isinstance(row, dict) else type(row).__name__
    return Unreadable(f"{place}, has no {key!r}.", f"It has: {keys}.", "Name the key of the text: --text-column KEY", size)


def peek_row(part: "Part") -> dict[str, str]:
    """Return the types of the first row's values, for `choose_column`; empty when it can't be read."""
    rows = _lines(part) if part.kind == "jsonl" else iter_values(Decoded(part), "", part.location)
    try:
        row = next(iter(rows), None)
    except (DataError, OSError, EOFError):
        return {}  # whoever reads it says what is wrong
    return {key: describe_value(value) for key, value in row.items()} if isinstance(row, dict) else {}


def _lines(part: "Part") -> Iterator[Any]:
    for line in read_lines(Decoded(part), LONGEST_ROW):
        if isinstance(line, str) and line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                return


def read_json(part: "Part", text_column: str) -> "Documents":
    """Read a .json file: an array of texts or objects, an object with one list of them, or a sequence of objects."""
    source = Decoded(part)
    for number, row in enumerate(iter_values(source, text_column, part.location), start=1):
        place = f"{part.location}, row {number}"
        if isinstance(row, Unreadable):
            yield row
        elif isinstance(row, str):
            yield source.check(row, f"{place},")
        else:
            text = _read_row(row, text_column, place, 0)
            yield source.check(text, f"{place},") if isinstance(text, str) else text


def iter_values(
    source: Decoded, column: str, location: str, is_row: Callable[[Any], bool] = lambda value: False
) -> Iterator[Any]:
    """Yield the rows of a JSON text; raises Unreadable where it is not valid JSON.

    An object for which `is_row` holds is a row as it is, whatever lists it has.
    """
    reader = _Reader(source, location)
    while character := reader.skip():
        if character == "[":
            yield from reader.array()
        else:
            value = reader.value()
            yield from [value] if is_row(value) else _rows_of(value, column, location)


def _rows_of(value: Any, column: str, location: str) -> Iterator[Any]:
    """Yield an object as a row, or the rows of its list if it has no text of its own and exactly one list of rows."""
    fields = value if isinstance(value, dict) else {}
    has_text = any(isinstance(item, str) for item in fields.values())
    lists = {key: item for key, item in fields.items() if isinstance(item, list) and describe_value(item) != "messages"}
    # Next to text of its own, a list of strings is metadata such as tags; only a list of objects counts.
    rows = {key: item for key, item in lists.items() if item and isinstance(item[0], dict if has_text else dict | str)}
    if not rows or isinstance(fields.get(column or "text"), str):
        yield value
    elif len(rows) == 1 or "train" in rows:
        yield from rows.get("train") or next(iter(rows.values()))
    else:
        why = f"Each of these could hold the documents: {', '.join(list(rows)[:20])}."
        raise DataError(f"{location} holds several lists.", why, f"Take one: jq -c '.{next(iter(rows))}[]' FILE > rows.jsonl")


class _Reader:
    """A cursor in a JSON text, of which only a window is in memory."""

    def __init__(self, source: Decoded, location: str) -> None:
        self._blocks, self._location = iter(source), location
        self._window, self._position = "", 0
        self._decoder = json.JSONDecoder()

    def skip(self) -> str:
        """Skip spaces and commas and return the next character; empty at the end."""
        while True:
            match = _SPACE.match(self._window, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._window):
                return self._window[self._position]
            if not self._more():
                return ""

    def array(self) -> Iterator[Any]:
        """Yield the elements of the array that begins here; raises Unreadable when it does not end."""
        self._position += 1
        while (character := self.skip()) != "]":
            if not character:
                raise Unreadable(f"{self._location} is not complete JSON.", "Its array does not end.")
            yield self.value()
        self._position += 1

    def value(self) -> Any:
        """Parse the value that begins here; raises Unreadable when it is not JSON or too long."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._position)
                # A number at the end of the window may go on in the next block.
                if end < len(self._window) or not self._more():
                    self._position = end
                    return value
            # Invalid so far may only mean incomplete: read on, until the value is too long or the file ends.
            except (ValueError, RecursionError) as error:
                too_long = len(self._window) - self._position > LONGEST_ROW
                if too_long or isinstance(error, RecursionError) or not self._more():
                    why = f"A value is longer than {LONGEST_ROW >> 20} MiB." if too_long else f"{error}."
                    raise Unreadable(f"{self._location} is not JSON.", why) from error

    def _more(self) -> bool:
        """Read as much again as the window holds: doubling it keeps the parsing of a long value linear; False at the end."""
        target = len(self._window) - self._position
        blocks = [self._window[self._position :]]
        while sum(map(len, blocks[1:])) <= target and (block := next(self._blocks, "")):
            blocks.append(block)
        self._window, self._position = "".join(blocks), 0
        return len(blocks) > 1

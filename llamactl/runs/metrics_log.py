"""Read the logs of a run: each row is validated where it is read, and no reader holds more rows than its caller asked for.

A log may have millions of rows and may come from an untrusted source. Known fields of a row have the right type, otherwise the
error names the file, the line and the field; a number that is not finite is read as None.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from llamactl.errors import DataError
from llamactl.runs.rows import Block, Row, decode_rows
from llamactl.storage.records import explain_error, open_file

LONGEST_ROW = 1 << 24  # bytes per line
CHUNK = 1 << 20  # bytes per read

_ROW = TypeAdapter(Row)
_NO_STEP = re.compile(rb'\n(?!\{"kind": "step", )')  # the end of a line, before one that is not as `Journal` writes a step

Columns = dict[str, np.ndarray]
T = TypeVar("T")


def parse_row(line: bytes) -> dict[str, Any]:
    """Validate one line of a log and return it as a row; raises ValueError that names the field."""
    try:
        row: Any = _ROW.validate_json(line)
    except ValidationError as error:
        raise ValueError(explain_error(error)) from error
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def read_rows(path: Path, root: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a log from its beginning; raises DataError that names the line. A missing log has no rows.

    An incomplete last line, left by a process that was killed, is skipped.
    """
    for number, lines in _blocks(path, root):
        yield from _parsed(path, number, lines, parse_row)


def read_columns(path: Path, wanted: Mapping[str, tuple[str, ...]], root: Path | None = None) -> dict[str, Columns]:
    """Read numeric fields of some kinds of rows as arrays, sorted by step; for repeated steps the last row counts.

    A number that is not finite becomes NaN. Raises DataError that names the line when a row lacks a field.
    """
    found: dict[str, list[Block]] = {kind: [] for kind in wanted}
    for number, lines in _blocks(path, root):
        columns = decode_rows(lines, wanted) or _validate_rows(path, number, lines, wanted)
        for kind, block in columns.items():
            found[kind].append(block)
    return {kind: _ordered(("step", *wanted[kind]), blocks) for kind, blocks in found.items()}


def _validate_rows(path: Path, number: int, lines: bytes, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Block]:
    """Validate each line of a block that begins with line `number`, and do what `decode_rows` does; raises DataError."""
    rows: dict[str, list[Any]] = {kind: [] for kind in wanted}
    for place, row in enumerate(_parsed(path, number, lines, _ROW.validate_json), start=number):
        missing = [name for name in wanted.get(row["kind"], ()) if name not in row]
        if missing:
            why = f"{missing[0]} is missing from a row of the kind {row['kind']!r}."
            raise DataError(f"{path}, line {place}, is damaged.", why)
        rows.get(row["kind"], []).append(row)

    def columns(kind: str) -> Iterator[np.ndarray]:
        yield np.array([row["step"] for row in rows[kind]], np.int64)
        # None, which is null in the log, becomes NaN.
        yield from (np.array([row[name] for row in rows[kind]], np.float64) for name in wanted[kind])

    return {kind: tuple(columns(kind)) for kind in wanted}


def last_rows(path: Path, kinds: tuple[str, ...], root: Path | None = None) -> dict[str, dict[str, Any]]:
    """Read the last row of each kind, the newest first, from the end of a log; raises DataError."""
    found: dict[str, dict[str, Any]] = {}
    if not os.path.lexists(path):
        return found
    missing = {kind: f'"{kind}"'.encode() for kind in kinds}
    with open_file(path, root) as file:
        for number, lines in enumerate(_backwards(file, path)):
            if number and "step" not in missing:
                lines = _other_rows(lines)
            # The last row is always parsed, to check that the file is a log; other rows only if they contain a wanted kind.
            place = len(lines) - 1 if number == 0 else _find_last(lines, missing, len(lines))
            while place >= 0:
                end = lines.rfind(b"\n", 0, place) + 1
                row = _parse_last(path, lines[end : lines.find(b"\n", place)])
                if missing.pop(row["kind"], None):
                    found[row["kind"]] = row
                    if row["kind"] == "step":
                        lines = _other_rows(lines[:end])
                        end = len(lines)
                place = _find_last(lines, missing, end)
            if not missing:
                break
    return found


def _other_rows(lines: bytes) -> bytes:
    """Return the rows of a block but for those that begin as a step's, of which a log has most."""
    starts = (0, *(match.end() for match in _NO_STEP.finditer(lines)))
    return b"".join(lines[at : lines.find(b"\n", at) + 1] for at in starts if at < len(lines))


def _find_last(lines: bytes, words: Mapping[str, bytes], end: int) -> int:
    """Find the last occurrence of any of the words before `end`; returns -1 when there is none."""
    return max((lines.rfind(word, 0, end) for word in words.values()), default=-1)


def _parse_last(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return parse_row(line)
    except ValueError as error:
        raise DataError(f"{path} is damaged.", f"One of its last rows: {error}") from error


def whole_lines(file: BinaryIO, path: Path) -> int:
    """Return the size in bytes of a file's complete lines; raises DataError when the incomplete last line is too long."""
    end = size = file.seek(0, os.SEEK_END)
    while end > 0:
        if size - end > LONGEST_ROW:
            raise DataError(f"{path} is damaged.", f"Its last line has more than {LONGEST_ROW:,} bytes.")
        start = max(0, end - CHUNK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _blocks(path: Path, root: Path | None) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of complete lines, each with the number of its first line; a missing log has none. Raises DataError."""
    if not os.path.lexists(path):
        return
    with open_file(path, root) as file:
        number, rest = 1, b""
        while read := file.read(CHUNK):
            end = read.rfind(b"\n") + 1
            if end:
                lines, rest = rest + read[:end], b""
                yield number, lines
                number += lines.count(b"\n")
            rest += read[end:]
            if len(rest) >= LONGEST_ROW:
                raise DataError(f"{path}, line {number}, is damaged.", f"It has more than {LONGEST_ROW:,} bytes.")


def _parsed(path: Path, number: int, lines: bytes, parse: Callable[[bytes], T]) -> Iterator[T]:
    """Yield the parsed lines of a block that begins with line `number`; raises DataError that names the line."""
    for place, line in enumerate(lines.split(b"\n")[:-1], start=number):
        try:
            yield parse(line)
        except ValidationError as error:
            raise DataError(f"{path}, line {place}, is damaged.", explain_error(error)) from error
        except ValueError as error:
            raise DataError(f"{path}, line {place}, is damaged.", str(error)) from error


def _backwards(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield blocks of complete lines, including line ends, from the end of the file to its beginning."""
    at, rest = whole_lines(file, path), b""
    while at > 0:
        start = max(0, at - CHUNK)
        file.seek(start)
        piece = file.read(at - start) + rest
        at, cut = start, piece.find(b"\n") + 1 if start else 0
        # A block without a line end before its last byte is part of a line that begins in an earlier block.
        rest, whole = (piece, b"") if cut == len(piece) else (piece[:cut], piece[cut:])
        if len(rest) > LONGEST_ROW:
            raise DataError(f"{path} is damaged.", f"A line has more than {LONGEST_ROW:,} bytes.")
        if whole:
            yield whole


def _ordered(names: tuple[str, ...], blocks: list[Block]) -> Columns:
    """Join the columns of some blocks, sort them by step, and keep the last row of each step."""
    empty = (np.array([], np.int64), *(np.array([]) for _ in names[1:]))
    steps, *fields = (np.concatenate(parts) for parts in zip(empty, *blocks, strict=True))
    order = np.argsort(steps, kind="stable")
    last = np.append(np.diff(steps[order]) != 0, True)[: len(order)]
    kept = order[last]
    return {name: column[kept] for name, column in zip(names, (steps, *fields), strict=True)}

"""Follow the rows that are appended to a run's logs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamactl.runs.metrics_log import LONGEST_ROW, parse_row
from llamactl.runs.run_dir import RunDir
from llamactl.storage import locks
from llamactl.storage.records import open_file

MOST_ROWS = 20_000  # rows per call, so that a log of any length can be followed in bounded memory


def follow_rows(run: RunDir) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows that are new since the last yield, possibly none, until no process writes to the run any more."""
    tails = [Tail(run.metrics_path), Tail(run.samples_path)]
    alive = behind = True
    while alive or behind:
        alive = locks.is_locked(run.lock_path)  # checked before reading, so that the last rows are not missed
        looked = [tail.rows() for tail in tails]
        behind = any(len(rows) == MOST_ROWS for rows in looked)
        yield [row for rows in looked for row in rows]


class Tail:
    """Reads the lines that another process appends to a file."""

    def __init__(self, path: Path) -> None:
        """Start at the beginning of the file."""
        self._path, self._at = path, 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the complete lines since the last call, at most MOST_ROWS.

        An incomplete line is left for the next call. Lines that are not valid rows are skipped. Raises DataError where the path
        is not a regular file.
        """
        found: list[dict[str, Any]] = []
        if not os.path.lexists(self._path):
            return found
        with open_file(self._path) as file:
            self._at = min(self._at, file.seek(0, os.SEEK_END))  # a resumed run truncates an incomplete last line
            file.seek(self._at)
            while len(found) < MOST_ROWS and (line := file.readline(LONGEST_ROW)).endswith(b"\n"):
                self._at += len(line)
                with suppress(ValueError):
                    found.append(parse_row(line))
        return found

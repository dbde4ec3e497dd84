"""What is appended to a run's logs, as it comes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamactl import durable
from llamactl.artifacts import RunDir


def follow(run: RunDir) -> Iterator[list[dict[str, Any]]]:
    """The rows that are new since the last look, which may be none, until nobody writes to the run any more."""
    metrics, samples = Tail(run.metrics_path), Tail(run.samples_path)
    alive = True
    while alive:
        alive = durable.in_use(run.lock_path)  # asked first, so that the last rows are read after the last was written
        yield [*metrics.rows(), *samples.rows()]


class Tail:
    """The end of a file that another process appends lines to."""

    def __init__(self, path: Path) -> None:
        """Begin with what is there."""
        self._path, self._at = path, 0

    def rows(self) -> list[dict[str, Any]]:
        """Whole lines since the last look; half a line is left for the next one, and what is no row is passed over."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            self._at = min(self._at, size)  # a run that goes on cuts off half a line
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return [row for line in whole.split(b"\n") if line and (row := _row(line))]


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}

"""Rows of JSON, of parquet and of datasets of the hub as they are: `readers.py` makes text of one of their columns."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamactl.corpus import readers
from llamactl.corpus.conversations import COLUMNS, NOT_TEXT, Skipped, holds_conversation
from llamactl.corpus.hub import hub_parts, stream_rows
from llamactl.corpus.inputs import hash_inputs
from llamactl.corpus.objects import LONGEST_ROW, iter_values
from llamactl.corpus.parts import Part
from llamactl.corpus.sources import name_source
from llamactl.corpus.streams import Decoded, read_lines
from llamactl.corpus.tables import read_parquet_rows
from llamactl.corpus.unreadable import Unreadable
from llamactl.corpus.walk import find_files
from llamactl.errors import DataError
from llamactl.storage.home import make_name

NOT_JSON = "not JSON"
TOO_LARGE = f"a row above {LONGEST_ROW >> 20} MiB"


@dataclass(frozen=True)
class RowSource:
    """Files of rows, or a dataset of the hub: its name, its stored bytes (0: unknown) and what identifies it."""

    name: str
    parts: tuple[Part, ...]
    size: int
    pinned: str = ""  # the commit of a dataset of the hub; files are known by their content

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows in order, or `Skipped` for one that can't be read; raises DataError, NoNetwork."""
        for part in self.parts:
            yield from READERS[part.kind](part)
            if part.stamp and readers.file_stamp(Path(part.location)) != part.stamp:
                raise DataError(f"{part.location} has changed while it was read.", "", "Run the same command again.")

    def name_with(self, model: str) -> str:
        """Name what is made of these rows for a model, given as MODEL."""
        return make_name(f"{self.name}-{Path(model.partition('@')[0].removeprefix('hf:')).name}") or "chat"


def open_rows(words: list[str]) -> RowSource:
    """Plan to read files, folders and globs of rows, or hf:ORG/NAME[:CONFIG]; raises DataError, NoNetwork."""
    if len(words) == 1 and words[0].startswith("hf:"):
        repository, _, config = words[0].removeprefix("hf:").partition(":")
        pinned, found = hub_parts([(repository, "main")], config)
        return RowSource(make_name(repository.rpartition("/")[2]) or "chat", tuple(found), 0, pinned)
    parts = [part for path in find_files(words).files for part in readers.split_into_parts(path)]
    for part in parts:
        if part.kind not in READERS:
            why = (
                "Conversations are rows of .jsonl or .json, also packed, of .parquet, or of a dataset of the hub: hf:ORG/NAME."
            )
            fix = "Convert it first: datasets.load_dataset(...).to_json('chat.jsonl')"
            raise DataError(f"{part.location} can't be read as conversations.", why, fix)
    name = name_source(words)
    return RowSource("chat" if name == "text" else name, tuple(parts), sum(part.size for part in parts))


def describe_inputs(source: RowSource) -> str:
    """Return what identifies the rows: the commit of a dataset, or the hashes of the files; raises DataError."""
    return source.pinned or "\n".join(file.sha256 for file in hash_inputs([source.parts]).values())


def _read_jsonl(part: Part) -> Iterator[Any]:
    source = Decoded(part)
    for line in read_lines(source, LONGEST_ROW):
        if isinstance(line, int):
            yield Skipped(TOO_LARGE, line)
        elif not isinstance(checked := source.check(line, part.location), str):
            yield Skipped(NOT_TEXT, checked.lost)
        elif line and not line.isspace():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield Skipped(NOT_JSON, len(line.encode("utf-8", "replace")))


def _read_json(part: Part) -> Iterator[Any]:
    """Yield the rows of a file of JSON; what follows a mistake in it can't be told apart, so that the rest is one row."""
    try:
        yield from iter_values(Decoded(part), "", part.location, holds_conversation)
    except Unreadable as error:
        yield Skipped(NOT_JSON, error.lost)


def _read_parquet(part: Part) -> Iterator[Any]:
    for row in read_parquet_rows(part, COLUMNS):
        yield Skipped(NOT_TEXT) if row is None else row


def _read_hub(part: Part) -> Iterator[Any]:
    with closing(stream_rows(part)) as rows:
        yield from rows


READERS: dict[str, Callable[[Part], Iterator[Any]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
    "hub": _read_hub,
}

"""The input files of a dataset, identified by content: names, sizes and times never decide whether finished work is reused."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llamactl.corpus.dataset_info import InputFile
from llamactl.corpus.parts import Part
from llamactl.corpus.readers import file_stamp
from llamactl.corpus.sources import Piece
from llamactl.errors import DataError

MOST_LISTED = 100_000  # files that dataset.json lists one by one; of more it lists groups

Hashed = Mapping[str, InputFile]  # by the path of the file, in the order in which they are read


def hash_inputs(pieces: Iterable[Piece]) -> dict[str, InputFile]:
    """Hash every local file of some pieces; raises DataError for a file that changed since the source was planned."""
    hashed: dict[str, InputFile] = {}
    for piece in pieces:
        for part in piece:
            if part.stamp and part.location not in hashed:  # else it is of a pinned revision of the hub
                hashed[part.location] = _hashed(part)
    return hashed


def _hashed(part: Part) -> InputFile:
    path = Path(part.location)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(f"{path} can't be read.", f"{error.strerror}.") from error
    # Compared after the hash, so that a write during it is noticed.
    if file_stamp(path) != part.stamp:
        raise DataError(f"{path} has changed while it was read.", "", "Run the same command again.")
    # A file name may be bytes that are not UTF-8; JSON needs text.
    return InputFile(name=os.fsencode(path.name).decode("utf-8", "backslashreplace"), size=size, sha256=digest)


def list_inputs(files: Hashed) -> dict[str, InputFile]:
    """Return the files as dataset.json lists them: one by one, or in groups of neighbours when there are very many."""
    # dataset.json is read back in full, up to LARGEST_RECORD bytes.
    if len(files) <= MOST_LISTED:
        return dict(files)
    group_size = -(-len(files) // MOST_LISTED)
    listed = list(files.values())
    groups = (_group(listed[start : start + group_size]) for start in range(0, len(listed), group_size))
    return {group.name: group for group in groups}


def _group(files: Sequence[InputFile]) -> InputFile:
    digest = hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode()).hexdigest()
    name = f"{files[0].name} to {files[-1].name}"
    return InputFile(name=name, size=sum(file.size for file in files), sha256=digest)


def describe_changes(before: Sequence[InputFile], now: Hashed) -> str:
    """Describe in one sentence which files differ from those before; empty when none does."""
    if tuple(before) == tuple(now.values()):
        return ""
    old, new = {file.name for file in before}, {file.name for file in now.values()}
    known = set(before)
    changed = [path for path, file in now.items() if file not in known and file.name in old]
    added = [path for path, file in now.items() if file.name not in old]
    removed = [file.name for file in before if file.name not in new]
    for names, what in ((changed, "changed"), (added, "was added"), (removed, "was removed")):
        if names:
            return f"{names[0]} {what}{f', and {len(names) - 1} more' if len(names) > 1 else ''}."
    return "The files are in a different order."

"""Find the folder that holds data/ and runs/, and that of the cache; check the names of datasets and runs."""

import os
import re
import unicodedata
from contextlib import suppress
from pathlib import Path

from llamactl.errors import DataError, UsageError

# Characters of the name of a dataset or a run.
LONGEST_NAME = 80


def home_folder() -> Path:
    """Return the folder of data/ and runs/: LLAMACTL_HOME, else the current one; raises UsageError for an unknown ~user."""
    try:
        return Path(os.environ.get("LLAMACTL_HOME") or ".").expanduser()
    except RuntimeError as error:
        raise UsageError("LLAMACTL_HOME can't be used.", f"{error}", "Set it to an absolute path.") from error


def cache_folder() -> Path:
    """Return this user's cache folder, by the XDG base directory specification; raises UsageError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamactl"
    except RuntimeError as error:
        raise UsageError("There is no home folder for a cache.", f"{error}", "Set XDG_CACHE_HOME to a folder.") from error


def folders_with(folders: Path, file: str) -> list[Path]:
    """List the folders in `folders` that contain a file of this name, the most recently written one first."""
    times: dict[Path, int] = {}
    for folder in folders.iterdir() if folders.is_dir() else ():
        with suppress(OSError):
            # A hidden folder is a draft, or partly removed.
            if not folder.name.startswith("."):
                times[folder] = (folder / file).lstat().st_mtime_ns
    return sorted(times, key=times.__getitem__, reverse=True)


def check_name(name: str) -> str:
    """Return a name if it is valid for a folder; raises DataError with a suggestion."""
    # No separators and no leading dot or dash: it becomes a part of a path and an argument of commands.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name) or len(name) > LONGEST_NAME:
        why = f"Names are up to {LONGEST_NAME} letters, digits, '-', '_' and '.'."
        raise DataError(f"{name[:200]!r} is not a name.", why, f"This would be one: {make_name(name) or 'my-text'}")
    return name


def require_name(name: str, command: str) -> str:
    """Return a typed name unless it is empty, which elsewhere means the newest; raises UsageError with the command to type."""
    if not name:
        raise UsageError("The name is empty.", "Only what is named is removed.", f"Name it: {command} NAME")
    return name


def shorten_name(name: str, room: int) -> str:
    """Return as much of a name as leaves room for so many more characters."""
    return name[: LONGEST_NAME - room].rstrip("-.")


def make_name(text: str) -> str:
    """Make a valid name from a text: remove accents, replace other characters by "-"; empty if nothing remains."""
    # NFKD splits an accented letter into the letter and its accent, which is not ASCII.
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.]+", "-", plain).strip("-.")[:LONGEST_NAME].strip("-.")

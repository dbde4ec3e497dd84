"""Find the files that the user means: files, folders and globs become a sorted list; skipped files are counted by reason.

Links are followed, each folder is entered once however many names lead to it, and a file is read once. Clutter (hidden files,
backups, files of the system) and what is not a regular file are skipped inside of folders, but not where they are named.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamactl.corpus.kinds import ABOUT, READABLE, describe_ending, describe_magic, find_kind, is_clutter, split_endings
from llamactl.corpus.streams import read_head
from llamactl.corpus.text_files import is_text
from llamactl.errors import DataError
from llamactl.storage.records import read_object


@dataclass
class Found:
    """The files of a source, how many others were left out and why, those of unknown kinds, and notes for the user."""

    files: list[Path]
    left_out: Counter[str] = field(default_factory=Counter)
    unknown: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_files(patterns: list[str]) -> Found:
    """Return the files that the patterns name, sorted; raises DataError for a pattern that names none."""
    found = Found([])
    files: set[Path] = set()
    for pattern in patterns:
        matches = _match(pattern)
        found.unknown, ending = [], Path(pattern).suffix
        inside = [file for match in matches for file in _files_of(match, found, match == _plain(pattern), ending)]
        inside = inside or _texts_of_unknown_kinds(found)
        if not inside:
            raise _no_files(pattern, found)
        files.update(inside)
    found.files = sorted(_once(sorted(files, reverse=True)))
    return found


def _texts_of_unknown_kinds(found: Found) -> list[Path]:
    """Return the files of unknown kinds whose first bytes are text: where there is nothing else, they are what was meant."""
    texts, other_endings = [], set()
    for path in found.unknown:
        # One photo tells that no .jpg is text: there may be a million of them.
        if path.suffix in other_endings:
            continue
        if _looks_like_text(path):
            texts.append(path)
        elif path.suffix:
            other_endings.add(path.suffix)
    taken = Counter(map(_reason, texts))
    found.left_out -= taken
    if taken:
        found.notes.append(f"text, by the first bytes: {show_counts(taken)}")
    return texts


def _looks_like_text(path: Path) -> bool:
    try:
        head = read_head(path)
    except OSError:
        return False
    return describe_magic(head) is None and is_text(head)


def _once(files: list[Path]) -> Iterator[Path]:
    """Yield each file once, under its last name: links may give a file several names."""
    folders: dict[Path, str] = {}
    real: dict[str, Path] = {}
    for file in files:
        # realpath asks the system for each component of a path: once per folder, not per file.
        folder = folders.get(file.parent)
        if folder is None:
            folder = folders[file.parent] = os.path.realpath(file.parent)
        real[os.path.realpath(file) if file.is_symlink() else f"{folder}/{file.name}"] = file
    yield from real.values()


def _plain(pattern: str) -> Path:
    try:
        return Path(pattern).expanduser()
    except RuntimeError as error:
        raise DataError(f"No files found at {pattern!r}.", f"{error}", "Write the full path.") from error


def _match(pattern: str) -> list[Path]:
    """Return the paths of a pattern: the pattern itself if it exists, else its matches as a glob. Raises DataError."""
    path = _plain(pattern)
    try:
        # A file may be named like a glob, such as [draft].txt.
        if os.path.lexists(path):
            return [path]
        hidden = path.name.startswith(".")
        matches = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
        return [match for match in matches if hidden or not is_clutter(match.name)]
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"No files found at {pattern!r}.", f"{error}.") from error


def _files_of(path: Path, found: Found, named: bool, ending: str) -> Iterator[Path]:
    """Yield a file, or all files of a folder; raises DataError for an unreadable path that was `named` by the user.

    A pattern such as *.log names the `ending` of the files that are meant.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not named:
            found.left_out["a link to nothing"] += 1
            return
        raise DataError(f"{path} can't be read.", f"{error.strerror}.") from error
    if stat.S_ISDIR(mode):
        yield from _walk(path, found, set())
    elif stat.S_ISREG(mode):
        if named or find_kind(path) or (ending and path.suffix == ending):
            yield path
        else:
            _leave_out(path, found)
    elif named:
        fix = "Write what it gives to a file first: cat FILE > text.txt"
        raise DataError(f"{path} can't be read.", "It is a pipe, a socket or a device.", fix)
    else:
        found.left_out["no regular file"] += 1


def _walk(folder: Path, found: Found, entered: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield all files below a folder, in the order of their names."""
    status = folder.stat()
    # A link to a folder above it would be followed for ever.
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    if saved := _saved_dataset(folder, found, entered):
        yield from saved
        return
    for name in list_names(folder):
        path = folder / name
        if is_clutter(name):
            found.left_out["hidden or left by a system"] += 1
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            found.left_out["a link to nothing"] += 1
            continue
        if stat.S_ISDIR(mode):
            yield from _walk(path, found, entered)
        elif not stat.S_ISREG(mode):
            found.left_out["no regular file"] += 1
        elif name.lower() in ABOUT:
            found.left_out["README or LICENSE"] += 1
        elif find_kind(path):
            yield path
        else:
            _leave_out(path, found)


def _leave_out(path: Path, found: Found) -> None:
    """Count a file whose name is that of no text; remember it if its name says nothing."""
    found.left_out[_reason(path)] += 1
    if describe_ending(path) is None and split_endings(path)[1] == "":
        found.unknown.append(path)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; raises DataError."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} can't be read.", f"{error.strerror}.", "Allow it, or name the files.") from error


def show_counts(counts: Counter[str]) -> str:
    """Write how many files there are of each kind, the most frequent kinds first."""
    return ", ".join(f"{count:,} × {kind}" for kind, count in counts.most_common(9))


def _reason(path: Path) -> str:
    other = describe_ending(path)
    ending = path.suffix.lower()
    return f"{ending}: {other.name}" if other else f"{ending} files" if ending else "names without an ending"


def _saved_dataset(folder: Path, found: Found, entered: set[tuple[int, int]]) -> list[Path]:
    """Return the Arrow files of a folder written by datasets' save_to_disk; empty for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_object(folder / "dataset_dict.json").get("splits")
        names = [name for name in splits if isinstance(name, str) and "/" not in name] if isinstance(splits, list) else []
        if "train" not in names and len(names) != 1:
            why = f"Its splits are: {', '.join(names) or 'none'}."
            raise DataError(f"{folder} has no split 'train'.", why, f"Name one: llamactl prepare {folder}/SPLIT")
        split = "train" if "train" in names else names[0]
        if rest := [name for name in names if name != split]:
            found.notes.append(f"of {folder} the split {split!r} is taken; left out: {', '.join(rest)}")
        return list(_walk(folder / split, found, entered))
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return []
    listed = read_object(folder / "state.json").get("_data_files")
    stored: list[Any] = [file.get("filename") for file in listed if isinstance(file, dict)] if isinstance(listed, list) else []
    # The names come from a file: none may lead out of the folder.
    if not stored or not all(isinstance(name, str) and "/" not in name and name != ".." for name in stored):
        raise DataError(f"{folder / 'state.json'} is damaged.", "_data_files names no files of this folder.")
    return [folder / name for name in stored]


def _no_files(pattern: str, found: Found) -> DataError:
    """Build the error for a pattern without files, which says what was skipped."""
    why = f"Left out: {show_counts(found.left_out)}. " if found.left_out else ""
    why += f"A source is openwebtext, sample, hf:org/name, or files, folders and globs: {READABLE}."
    return DataError(f"No files found at {pattern!r}.", why, "Try: llamactl prepare sample")

"""Find the files that the user means: files, folders and globs become a sorted list; skipped files are counted by reason.

Links are followed, each folder is entered once however many names lead to it, and a file is read once. Clutter (hidden files,
backups, files of the system) and what is not a regular file are skipped inside of folders, but not where they are named.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from llamactl.corpus.kinds import ABOUT, PACKED, READABLE, describe_ending, find_kind, is_clutter, split_endings
from llamactl.corpus.programs import is_code, is_readable
from llamactl.errors import DataError, UsageError
from llamactl.storage.records import read_object

# Files by which a folder is known as a dataset, finished or not, as a run or as a model, whose files are no text to learn.
MADE = (
    (".pieces",),
    ("dataset.json", "tokenizer.json"),
    ("config.toml", "environment.json"),
    ("config.toml", "metrics.jsonl"),
    ("config.json", "tokenizer.json"),
)
FEW_OTHERS = 20  # files of an ending that are no text, after which no more of it are looked at


@dataclass
class Found:
    """The files of a source, how many others were left out and why, those of unknown kinds, and notes for the user.

    `encoding` is that of text without a mark; empty for UTF-8.
    """

    files: list[Path]
    encoding: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    unknown: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_files(patterns: list[str], encoding: str = "") -> Found:
    """Return the files that the patterns name, sorted; raises DataError for a pattern that names none, UsageError for ""."""
    if "" in patterns:
        # An empty path is the current folder, which nobody means who typed "$NAME" of a variable that is not set.
        raise UsageError("A source is empty.", "Perhaps a variable is not set.", "The current folder is: llamactl prepare .")
    found = Found([], encoding)
    files: set[Path] = set()
    for pattern in patterns:
        matches = _match(pattern, found)
        found.unknown, ending = [], "".join(split_endings(Path(pattern)))
        inside = [file for match in matches for file in _files_of(match, found, match == _plain(pattern), ending)]
        inside = inside or _texts_of_unknown_kinds(found)
        if not inside:
            raise _no_files(pattern, found)
        files.update(inside)
    found.files = sorted(_once(sorted(files, reverse=True)))
    return found


def _texts_of_unknown_kinds(found: Found) -> list[Path]:
    """Return the files of unknown kinds that are text: where there is nothing else, they are what was meant."""
    texts, others = [], Counter[str]()
    for path in found.unknown:
        # A few photos tell that no .jpg is text: there may be a million of them.
        if others[path.suffix] < FEW_OTHERS and is_readable(path, found.encoding):
            texts.append(path)
        else:
            others[path.suffix] += 1
    taken = Counter(map(_reason, texts))
    found.left_out -= taken
    if taken:
        found.notes.append(f"text, by the first bytes: {show_counts(taken)}")
    return texts


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


def _match(pattern: str, found: Found) -> list[Path]:
    """Return the paths of a pattern: the pattern itself if it exists, else its matches as a glob. Raises DataError."""
    path = _plain(pattern)
    try:
        # A file may be named like a glob, such as [draft].txt.
        if os.path.lexists(path):
            return [path]
        hidden = path.name.startswith(".")
        matches = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
        matched = [match for match in matches if hidden or not is_clutter(match.name)]
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"No files found at {pattern!r}.", f"{error}.") from error
    # A pattern such as **/*.jsonl finds the logs of runs as well; the folders that it names itself are meant.
    named = Path(*takewhile(lambda part: not set("*?[") & set(part), path.parts))
    folders = {each for match in matched for each in (match, *match.parents)} - {named, *named.parents}
    made = {folder for folder in folders if _is_made(folder, found)}
    return [match for match in matched if made.isdisjoint((match, *match.parents))]


def _is_made(folder: Path, found: Found) -> bool:
    """Check whether a folder is a dataset, a run or a model, and count it if so: a folder above it does not mean its files."""
    made = any(all(os.path.lexists(folder / name) for name in names) for names in MADE)
    found.left_out["a dataset, run or model"] += made
    return made


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
        asked = ending not in ("", *PACKED) and path.name.lower().endswith(ending)
        if named or asked or _is_taken(path, found):
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
            if not _is_made(path, found):
                yield from _walk(path, found, entered)
        elif not stat.S_ISREG(mode):
            found.left_out["no regular file"] += 1
        elif name.lower() not in ABOUT and _is_taken(path, found):
            yield path
        else:
            _leave_out(path, found)


def _is_taken(path: Path, found: Found) -> bool:
    """Check whether a file in a folder is read: by its name, and source code only where it can be."""
    if not find_kind(path):
        return False
    return not is_code(path) or bool(split_endings(path)[1]) or is_readable(path, found.encoding)


def _leave_out(path: Path, found: Found) -> None:
    """Count a file that is not taken for text; remember it if its name says nothing."""
    if path.name.lower() in ABOUT:
        found.left_out["README or LICENSE"] += 1
        return
    found.left_out[_reason(path)] += 1
    if describe_ending(path) is None and not find_kind(path) and not split_endings(path)[1]:
        found.unknown.append(path)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; raises DataError."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} can't be read.", f"{error.strerror}.", "Allow it, or name the files.") from error


def show_counts(counts: Counter[str]) -> str:
    """Write how many files there are of each kind, the most frequent kinds first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} × {kind}" for kind, count in ordered[:9])


def _reason(path: Path) -> str:
    other, ending = describe_ending(path), path.suffix.lower()
    if is_code(path):
        return f"{ending} files that are not UTF-8"
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

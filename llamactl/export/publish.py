"""Publish exports to folders that may hold other files: replace only files of earlier exports, never files that users edited.

Each folder of exports has a list of the files that were written into it, with hashes. A file counts as an export's as long as
it has the hash on that list, or the content that is to be written. Everything is first written to a temporary folder and
checked there, so that an export that fails leaves the previous one intact.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from llamactl.checkpoint.format import State
from llamactl.checkpoint.select import describe_model
from llamactl.errors import UsageError, UserError
from llamactl.storage import atomic
from llamactl.storage.atomic import FolderDraft
from llamactl.storage.records import Record, read_record, to_json

LIST = ".llamactl.json"


class Exported(Record):
    """The files that exports wrote into a folder: each file's sha256 by its name."""

    files: dict[str, str]


def name_export(checkpoint: Path, state: State, kind: str) -> str:
    """Build the name of an export, RUN-stepN-KIND or FOLDER-KIND, from characters that need no quoting in a shell or a URL."""
    name, _, stepped = describe_model(checkpoint, state).partition(" at step ")
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip(".-") or "model"
    return f"{plain}-step{state.step}-{kind}" if stepped else f"{plain}-{kind}"


@contextmanager
def publish_folder(folder: Path) -> Iterator[FolderDraft]:
    """Yield a draft folder that then replaces `folder` atomically; files that users added to `folder` are kept.

    Raises UsageError if they edited a file of the export.
    """
    with atomic.atomic_dir(_aside(folder)) as draft:
        yield draft
        written = dict(draft.hashes)
        draft.write(LIST, [_list(written)])
        there = os.path.lexists(folder)
        if there:
            _refuse_other(folder)
            _refuse_edited(folder, written)
            _keep_added(folder, draft.path, written)
    if there:
        atomic.exchange_folders(_aside(folder), folder)
        atomic.remove_folder(_aside(folder))
    else:
        atomic.move_into_place(_aside(folder), folder)


@contextmanager
def publish_files(into: Path, name: str) -> Iterator[FolderDraft]:
    """Yield a draft folder whose files are then moved into `into`, each atomically; raises UsageError if one was edited."""
    with atomic.atomic_dir(_aside(into / name)) as draft:
        yield draft
        written = dict(draft.hashes)
        _refuse_edited(into, written)
    known = _known(into)
    for file in written:
        atomic.move_into_place(_aside(into / name) / file, into / file)
    atomic.write_file(into / LIST, _list({**known, **written}))
    atomic.remove_folder(_aside(into / name))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _list(files: Mapping[str, str]) -> bytes:
    return f"{to_json(Exported(files=dict(sorted(files.items()))).model_dump(), indent=1)}\n".encode()


def _known(folder: Path) -> dict[str, str]:
    """Read the hashes of a folder's exported files; empty when the list is missing or can't be read."""
    with suppress(UserError, OSError):
        return read_record(folder / LIST, Exported).files
    return {}


def _refuse_other(folder: Path) -> None:
    """Raise UsageError when the path of the export is a file or a symbolic link."""
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(
            f"{folder} is there already, and is not a folder.", "", "Move it away, or write elsewhere: --out FOLDER"
        )


def _refuse_edited(folder: Path, written: Mapping[str, str]) -> None:
    """Raise UsageError if a file would be lost: one that matches neither the earlier export nor the new one."""
    known = _known(folder)
    there = [name for name in written if os.path.lexists(folder / name)]
    edited = [name for name in there if _digest(folder / name) not in (known.get(name), written[name])]
    if edited:
        what = f"{', '.join(edited)} in {folder} {'was' if len(edited) == 1 else 'were'} edited, or is not from this command."
        fix = f"Write elsewhere: --out FOLDER. To have it replaced, move it away first: mv {folder / edited[0]} ..."
        raise UsageError(what, "Nothing was changed: what you edit is never replaced.", fix)


def _keep_added(folder: Path, draft: Path, written: Mapping[str, str]) -> None:
    """Link all other files of `folder` into `draft`, so that they exist in one of the two folders at any time."""
    known = _known(folder)
    shutil.copymode(folder, draft)
    for path in folder.iterdir():
        if path.name in written or path.name == LIST or _digest(path) == known.get(path.name, "-"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, draft / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, draft / path.name)


def _link(source: str | Path, target: str | Path) -> None:
    """Create a hard link to a file, or copy it where the file system does not support them."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _digest(path: Path) -> str:
    """Return the sha256 of a regular file; empty for anything else."""
    return atomic.sha256(path) if path.is_file() and not path.is_symlink() else ""

"""Atomic writes: a file or a folder appears complete or not at all, and survives a power failure.

The order is always the same: write a draft, sync it, rename it, sync its folder (Pillai et al. 2014, "All File Systems Are Not
Created Equal"). A failed sync is never retried, as the kernel may have dropped the data that it could not write. All operations
are called as attributes of `os` and `shutil`, so that tests can make each of them fail.

Each draft has a unique name, and its writer holds a lock on it. A draft without a lock was left by a killed process; the next
write to the same path removes it.
"""

import ctypes
import fcntl
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from llamactl.storage.disk import make_dirs, sync_path, wrap_os_errors
from llamactl.storage.locks import is_named, try_lock

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BUFFER = 1 << 20  # bytes
# From Linux's fcntl.h and fs.h: paths are relative to the current folder; swap two names.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class _Draft(io.RawIOBase):
    """A new file for writing, by way of `os`."""

    def __init__(self, path: Path) -> None:
        """Create the file; raises FileExistsError if it exists."""
        # O_EXCL fails if the file exists, so that no other process can be writing it.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Return True, as io.RawIOBase says False."""
        return True

    def seekable(self) -> bool:
        """Return True, as io.RawIOBase says False."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position; return it in bytes from the start."""
        return os.lseek(self._descriptor, offset, whence)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as many bytes as the kernel accepts; return their number."""
        return os.write(self._descriptor, data)

    def close(self) -> None:
        """Close the descriptor, without a sync."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)


@contextmanager
def _open_draft(raw: _Draft) -> Iterator[BinaryIO]:
    """Buffer the writes to a draft, and sync it if the block succeeds."""
    try:
        file = io.BufferedWriter(raw, BUFFER)
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(raw.fileno())
    finally:
        raw.close()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a draft of a file in a context; if the block succeeds, sync it and rename it to `path`."""
    with wrap_os_errors(path):
        make_dirs(path.parent)
        remove_stale_drafts(path.parent, path.name)
        draft, raw = _new_draft(path)
        try:
            with _open_draft(raw) as file:
                yield file
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        # The rename itself is durable only once its folder is.
        sync_path(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@dataclass
class FolderDraft:
    """Draft of a folder, and the sha256 of each file written to it."""

    path: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, parts: "Iterable[ReadableBuffer]") -> None:
        """Write a file from parts, and sync it."""
        digest = hashlib.sha256()
        with _open_draft(_Draft(self.path / name)) as file:
            for part in parts:
                digest.update(part)
                file.write(part)
                # A part may be a gathered tensor: free it before the next one exists.
                del part
        self.hashes[name] = digest.hexdigest()


@contextmanager
def atomic_dir(folder: Path, parents: bool = True) -> Iterator[FolderDraft]:
    """Create the draft of a folder in a context; if the block succeeds, rename it to `folder`, replacing an existing one.

    Without `parents`, create at most the folder directly above; those further up must exist.
    """
    with wrap_os_errors(folder):
        make_dirs(folder.parent, parents)
        remove_stale_drafts(folder.parent, folder.name)
        draft, descriptor = _new_folder(folder)
        try:
            yield FolderDraft(draft)
            sync_path(draft)
            # A rename can't replace a folder that is not empty.
            if folder.exists():
                remove_folder(folder)
            os.rename(draft, folder)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(draft)
            raise
        finally:
            # Releases the lock, only after the rename: until then another writer would remove the draft as stale.
            os.close(descriptor)
        sync_path(folder.parent)


def exchange_folders(first: Path, second: Path) -> None:
    """Swap the names of two folders with the same parent, atomically if the system can."""
    with wrap_os_errors(second):
        if not _exchanged(first, second):
            temporary = first.with_name(f"{first.name}.swapped")
            os.rename(second, temporary)
            os.rename(first, second)
            os.rename(temporary, first)
        sync_path(second.parent)


def _exchanged(first: Path, second: Path) -> bool:
    """Swap two names with one system call; return True if that succeeded."""
    # Through ctypes, as Python has no renameat2.
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    return call is not None and call(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def move_into_place(draft: Path, path: Path) -> None:
    """Rename a complete draft to `path`, replacing a file there."""
    with wrap_os_errors(path):
        os.replace(draft, path)
        sync_path(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: rename it first, so that a crash leaves no incomplete folder with its name.

    Of a link to a folder, such as one on another disk, remove what the folder holds, then the link.
    """
    removed = folder.with_name(f".{folder.name}.removed")
    with wrap_os_errors(folder):
        if folder.is_symlink():
            _empty(folder)
            os.unlink(folder)
            sync_path(folder.parent)
            return
        # Left by a process that was killed during an earlier removal.
        _discard(removed)
        os.rename(folder, removed)
        # Before the first file goes: otherwise a power failure could bring the name back without all of them.
        sync_path(folder.parent)
        shutil.rmtree(removed)


def _empty(folder: Path) -> None:
    """Remove all that a folder holds; raises OSError."""
    # Files last: they say what the folder is, so that after a crash it is still listed, and the same command removes the rest.
    for path in sorted(folder.iterdir(), key=_is_entry):
        if _is_entry(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)


def _is_entry(path: Path) -> bool:
    """Check whether a path is a file or a link, which `os.unlink` removes."""
    return path.is_symlink() or not path.is_dir()


def _discard(path: Path) -> None:
    """Remove what a killed process left, as far as that can be done; of a link the link alone, never what it leads to."""
    if path.is_symlink():
        with suppress(OSError):
            os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename a damaged folder to damaged-NAME, damaged-NAME-2 and so on; return its new path."""
    names = (f"damaged-{folder.name}{suffix}" for suffix in chain([""], (f"-{number}" for number in count(2))))
    target = next(path for name in names if not os.path.lexists(path := folder.with_name(name)))
    with wrap_os_errors(folder):
        os.rename(folder, target)
        sync_path(folder.parent)
    return target


def remove_partial(folder: Path) -> None:
    """Remove the drafts and half-removed folders that a killed process left in a folder."""
    for path in () if folder.is_symlink() else folder.glob(".*"):
        _discard(path)


def remove_stale_drafts(folder: Path, of: str = "") -> None:
    """Remove the drafts in a folder, of one name or of all, whose writers have ended."""
    prefix = f".{of}." if of else "."
    for name in os.listdir(folder) if folder.is_dir() else []:
        if name.startswith(prefix) and name.endswith(".draft"):
            with suppress(OSError):
                _remove_if_stale(folder / name)


def _remove_if_stale(draft: Path) -> None:
    """Remove a draft unless its writer holds its lock; raises OSError."""
    # O_NONBLOCK, as opening a FIFO would wait.
    descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if try_lock(descriptor, fcntl.LOCK_EX):
            if draft.is_dir():
                shutil.rmtree(draft)
            else:
                os.unlink(draft)
    finally:
        os.close(descriptor)


def _new_draft(path: Path) -> tuple[Path, _Draft]:
    """Create and lock a draft of a file; return its path and the file."""
    while True:
        draft = _draft_path(path)
        raw = _Draft(draft)
        # Before it was locked, another process may have removed it as stale: try again.
        if try_lock(raw.fileno(), fcntl.LOCK_EX) and is_named(raw.fileno(), draft):
            return draft, raw
        raw.close()


def _new_folder(path: Path) -> tuple[Path, int]:
    """Create and lock a draft of a folder; return its path and the descriptor that holds the lock."""
    while True:
        draft = _draft_path(path)
        os.mkdir(draft)
        with suppress(FileNotFoundError):
            descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if try_lock(descriptor, fcntl.LOCK_EX) and is_named(descriptor, draft):
                return draft, descriptor
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draft_path(path: Path) -> Path:
    """Return a unique, hidden path for the draft of a file or a folder."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.draft")

"""The one place that writes: a file or a folder appears complete or not at all, and survives a power cut.

The order is always the same: write aside, sync, rename, sync the folder it is in (Pillai et al. 2014, "All File Systems Are Not
Created Equal"). A sync that failed is never tried again, as the kernel may have dropped what it could not write. Everything
goes through `os` and `shutil`, by name, so that tests can make each operation fail in its turn.
"""

import errno
import fcntl
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from llamactl.errors import CantWrite, DiskFull, InUse

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BUFFER = 1 << 20  # bytes
PATIENCE = 1.0  # seconds to wait for a lock whose holder says nothing


class _Draft(io.RawIOBase):
    """An empty file to be written, by way of `os`."""

    def __init__(self, path: Path) -> None:
        """Open it; one that is there is emptied."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go somewhere else."""
        return os.lseek(self._descriptor, offset, whence)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as many of the bytes as the kernel takes."""
        return os.write(self._descriptor, data)

    def close(self) -> None:
        """Close it, synced or not."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)


@contextmanager
def _drafting(path: Path) -> Iterator[BinaryIO]:
    """A buffered draft, synced when the block ends well."""
    raw = _Draft(path)
    try:
        file = io.BufferedWriter(raw, BUFFER)
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(raw.fileno())
    finally:
        raw.close()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a draft beside `path`; when the block ends well, sync it and rename it to `path`."""
    aside = _aside(path)
    with explained(path):
        make(path.parent)
        try:
            with _drafting(aside) as file:
                yield file
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise
        sync(path.parent)


def write(path: Path, content: str | bytes) -> None:
    """Write a small file durably."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@dataclass
class Filling:
    """A folder that is being filled, and the sha256 of each file in it."""

    path: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, parts: "Iterable[ReadableBuffer]") -> None:
        """Write a file in parts."""
        digest = hashlib.sha256()
        with _drafting(self.path / name) as file:
            for part in parts:
                digest.update(part)
                file.write(part)
                del part  # before the next one is made
        self.hashes[name] = digest.hexdigest()


@contextmanager
def filling(folder: Path) -> Iterator[Filling]:
    """Give a folder to fill; when the block ends well, rename it to `folder`, in the place of one that is there."""
    aside = _aside(folder)
    with explained(folder):
        make(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
        os.mkdir(aside)
        try:
            yield Filling(aside)
            sync(aside)
            if folder.exists():
                remove(folder)
            os.rename(aside, folder)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(aside)
            raise
        sync(folder.parent)


def make(folder: Path) -> None:
    """Make a folder and those above it, each of them durable before anything is in it."""
    if not folder.is_dir():
        make(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        sync(folder.parent)


def remove(folder: Path) -> None:
    """Remove a folder so that it never stands there half: it loses its name first, for good."""
    doomed = folder.with_name(f".{folder.name}.removed")
    with explained(folder):
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        sync(folder.parent)
        shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Remove what a killed process left unfinished in a folder, half written or half removed."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the kernel put a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that no other process can have; raises InUse with the holder's number.

    It is the kernel's (flock), so it is free again however its holder ended; that the file exists means nothing.
    """
    with explained(path):
        make(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        patience = time.monotonic() + PATIENCE
        while not _taken(descriptor, fcntl.LOCK_EX):
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace")
            if _alive(holder) or time.monotonic() > patience:
                why = f"Process {holder} is writing there." if holder else "It was started just now."
                raise InUse(f"{path.parent} is in use by another process.", why, "Wait for it, or stop it.")
            time.sleep(0.01)  # its holder has yet to write its number, or looks only whether the lock is free
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        if _taken(descriptor, fcntl.LOCK_EX):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def in_use(path: Path) -> bool:
    """Whether a process holds the lock at `path`."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not _taken(file.fileno(), fcntl.LOCK_SH)


def _taken(descriptor: int, kind: int) -> bool:
    """Take a lock, or keep it; the answer is no when another process has it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True
    except (ValueError, ProcessLookupError):
        return False
    return True


def sha256(path: Path) -> str:
    """The digest of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into an error for people."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = DiskFull if full else CantWrite
        fix = "Free some space and run the same command again; what was finished is kept." if full else ""
        free = f" {free_bytes(path) / 1e6:,.1f} MB are free." if full else ""
        raise kind(f"Can't write {path}.", f"{error.strerror or error}.{free}", fix) from error


def free_bytes(path: Path) -> int:
    """What is free on the disk that a path is, or will be, on."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _aside(path: Path) -> Path:
    """Where a file or a folder is written before it has its name."""
    return path.with_name(f".{path.name}.draft")

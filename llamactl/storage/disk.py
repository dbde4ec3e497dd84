"""Folders, syncs, free space and errors of a disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamactl.errors import DiskFull, WriteFailed


def make_dirs(folder: Path, parents: bool = True) -> None:
    """Create a folder and, with `parents`, those above it."""
    # Each is synced before anything is written into it, or a power failure could lose the whole subtree.
    if not folder.is_dir():
        if parents:
            make_dirs(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        sync_path(folder.parent)


def sync_path(path: Path) -> None:
    """Flush the bytes of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def wrap_os_errors(path: Path) -> Iterator[None]:
    """Convert an OSError in a context to DiskFull or WriteFailed."""
    try:
        yield
    except OSError as error:
        # A quota (EDQUOT) and a file size limit (EFBIG) count as a full disk.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = DiskFull if full else WriteFailed
        fix = "Free some space and run the same command again. Finished work is kept." if full else ""
        free = f" {free_bytes(path) / 1e6:,.1f} MB are free." if full else ""
        raise kind(f"Can't write {path}.", f"{error.strerror or error}.{free}", fix) from error


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that holds a path, or will once it exists."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free

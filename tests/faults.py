"""A disk that fails when it is told to: `durable` sees this in the place of `os` and `shutil`.

After SQLite's crash tests: every operation that changes the disk is counted, the one of a given number fails, and a crash
leaves behind only what the order of syncs promises. What was not synced is lost in the worst way that a file system may choose.
"""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamactl.storage import atomic, locks
from llamactl.storage import disk as storage_disk


class Crash(BaseException):
    """The machine lost its power: nothing of the process is heard of again."""


class Disk:
    """Operation number `fail_at` (0 is the first) fails `how`; from then on all do if `persistent`."""

    def __init__(self, fail_at: int = -1, how: str = "EIO", persistent: bool = False) -> None:
        self.fail_at, self.how, self.persistent = fail_at, how, persistent
        self.log: list[str] = []
        self.files: dict[int, str] = {}  # descriptor -> path as it was opened
        self.unsynced: dict[int, int] = {}  # inode -> bytes that are safe
        self.undo: list[tuple[str, Callable[[], None]]] = []  # folder, how to take a change of its names back
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _happens(self, operation: str) -> bool:
        """Count an operation; the answer is whether a write is to be short."""
        if self.dead:
            raise Crash
        number = len(self.log)
        self.log.append(operation)
        if number != self.fail_at and not (self.persistent and 0 <= self.fail_at < number):
            return False
        if self.how == "crash":
            self.dead = True
            raise Crash
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "short":
            return True
        raise OSError(getattr(errno, self.how), os.strerror(getattr(errno, self.how)))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        written, new = bool(flags & os.O_CREAT), not Path(path).exists()
        if written:
            self._happens(f"open {Path(path).name}")
        elif self.dead:
            raise Crash
        descriptor = os.open(path, flags, mode)
        self.files[descriptor] = str(path)
        if written:
            inode = os.fstat(descriptor).st_ino
            self.unsynced[inode] = 0
            if new:
                self.undo.append((str(Path(path).parent), lambda: _unlink_inode(Path(path).parents[1], inode)))
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        view = memoryview(data).cast("B")
        short = self._happens(f"write {Path(self.files[descriptor]).name}")
        return os.write(descriptor, view[: max(1, len(view) // 2)] if short else view)

    def fsync(self, descriptor: int) -> None:
        path = self.files[descriptor]
        if self._happens(f"fsync {Path(path).name}"):
            return
        os.fsync(descriptor)
        self.unsynced.pop(os.fstat(descriptor).st_ino, None)
        self.undo = [(folder, back) for folder, back in self.undo if folder != path]

    def mkdir(self, path: Path) -> None:
        self._happens(f"mkdir {path.name}")
        path.mkdir()
        inode = path.stat().st_ino
        self.undo.append((str(path.parent), lambda: _remove_inode(path.parent, inode)))

    def rename(self, old: Path, new: Path) -> None:
        self._happens(f"rename {old.name} {new.name}")
        old.rename(new)
        self.undo.append((str(new.parent), lambda: _back(new, old)))

    def replace(self, old: Path, new: Path) -> None:
        self._happens(f"replace {old.name} {new.name}")
        content = new.read_bytes() if new.exists() else None
        old.replace(new)

        def back() -> None:
            if content is None:
                new.unlink(missing_ok=True)
                return
            old.write_bytes(content)
            old.replace(new)

        self.undo.append((str(new.parent), back))

    def unlink(self, path: Path) -> None:
        self._happens(f"unlink {path.name}")
        path.unlink()

    def rmtree(self, path: Path, ignore_errors: bool = False) -> None:
        """A file goes, then the next one: a failure leaves half."""
        if not path.exists():
            if ignore_errors:
                return
            raise FileNotFoundError(2, "No such file or directory", str(path))
        try:
            for file in sorted(path.iterdir()):
                self._happens(f"rmtree {file.name}")
                file.unlink()
            self._happens(f"rmtree {path.name}")
            path.rmdir()
        except OSError:
            if not ignore_errors:
                raise

    def disk_usage(self, path: Path) -> Any:
        return shutil.disk_usage(path)

    def lose(self, names: bool, folder: Path) -> None:
        """The power is gone: contents that were not synced are lost and, if `names` too, so are changes of names."""
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.unsynced:
                os.truncate(path, self.unsynced[path.stat().st_ino])
        for _, back in reversed(self.undo if names else []):
            back()


def _back(new: Path, old: Path) -> None:
    if new.exists():
        new.rename(old)


def _unlink_inode(folder: Path, inode: int) -> None:
    """A file that has lost its name, wherever its folder is by now."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_ino == inode:
            path.unlink()


def _remove_inode(parent: Path, inode: int) -> None:
    for path in parent.iterdir() if parent.exists() else ():
        if path.stat().st_ino == inode:
            shutil.rmtree(path)


@contextmanager
def put_in_place(disk: Disk) -> Iterator[Disk]:
    """Have `durable` write to this disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (atomic, storage_disk, locks):
            patch.setattr(module, "os", disk)
        for module in (atomic, storage_disk):
            patch.setattr(module, "shutil", disk)
        yield disk

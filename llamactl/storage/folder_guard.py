"""Detect that a folder in use was moved, removed or replaced, so that nothing is written to another place."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamactl.errors import FolderMoved, UserError

RESUME_RUN = "llamactl train --resume {name}"
# Linux appends this to the path of a removed folder in /proc.
DELETED = " (deleted)"
# PATH_MAX of macOS, in bytes: the size of the buffer for F_GETPATH.
LONGEST_PATH = 1024


class FolderGuard:
    """Guard of a folder by an open descriptor, which refers to it wherever it is moved."""

    def __init__(self, path: Path, resume: str) -> None:
        """Open the folder at `path`; `resume` is the command to continue with, where {name} stands for the folder's name."""
        self._path, self._resume = path.absolute(), resume
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def trouble(self) -> FolderMoved | None:
        """Return the error to raise if the path no longer names the folder, else None."""
        try:
            current, original = self._path.stat(), os.fstat(self._descriptor)
        except OSError:
            return self._moved("")
        same = (current.st_dev, current.st_ino) == (original.st_dev, original.st_ino)
        return None if same else self._moved("Another folder has its name now. ")

    def check(self) -> None:
        """Raise FolderMoved if the path no longer names the folder."""
        if trouble := self.trouble():
            raise trouble

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

    def _moved(self, why: str) -> FolderMoved:
        """Build the error, which says where the folder is now and how to resume."""
        place = _current_path(self._descriptor)
        kept = "Nothing was written elsewhere."
        # The same path, but not there: the disk was unmounted.
        if place is None or place == self._path:
            message = f"{self._path} was {'removed' if place is None else 'unmounted'} while it was in use."
            return FolderMoved(message, why + kept, f"Bring it back, then: {self._resume.format(name=self._path.name)}")
        # Renamed in place, it is resumed under its new name; anywhere else it must be moved back first.
        command = self._resume.format(name=place.name if place.parent == self._path.parent else self._path.name)
        back = "" if place.parent == self._path.parent else f"Move it back to {self._path}, then: "
        return FolderMoved(f"{self._path} was moved while it was in use.", f"{why}It is {place} now. {kept}", back + command)


@contextmanager
def guard_folder(path: Path, resume: str) -> Iterator[FolderGuard]:
    """Guard a folder in a context; an error caused by its being moved becomes FolderMoved."""
    guard = FolderGuard(path, resume)
    try:
        yield guard
    except (UserError, OSError) as error:
        if not isinstance(error, FolderMoved) and (trouble := guard.trouble()):
            raise trouble from error
        raise
    finally:
        guard.close()


def _current_path(descriptor: int) -> Path | None:
    """Return the path of an open folder, None if it was removed."""
    # macOS has F_GETPATH, Linux /proc.
    if hasattr(fcntl, "F_GETPATH"):
        path = Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(LONGEST_PATH)).rstrip(b"\0")))
        return path if path.exists() else None
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    return None if path.name.endswith(DELETED) else path

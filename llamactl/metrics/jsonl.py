"""Append rows to a JSONL log and sync it to disk regularly, so that a crash loses little."""

import os
from contextlib import suppress
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from types import TracebackType

from llamactl.runs.metrics_log import whole_lines
from llamactl.storage import disk
from llamactl.storage.records import open_descriptor, to_json
from llamactl.training.events import Event, event_to_row

SYNC_EVERY = 0.5  # seconds


class Journal:
    """A file that rows are appended to, and a thread that syncs it to disk (fsync)."""

    def __init__(self, path: Path) -> None:
        """Store the path; the file is opened on entering the context."""
        self._path, self._dirty, self._closed = path, Flag(), Flag()
        self._failure: OSError | None = None
        self._thread = Thread(target=self._keep_synced, daemon=True, name="journal")

    def __enter__(self) -> "Journal":
        """Open the file, truncate an incomplete last line of an earlier process, and start the thread."""
        with disk.wrap_os_errors(self._path):
            disk.make_dirs(self._path.parent)
            # Rows stay in this folder, even if it is moved and another one takes its name.
            self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._descriptor = self._open()
            with open(self._descriptor, "rb", closefd=False) as file:
                os.ftruncate(self._descriptor, whole_lines(file, self._path))
            disk.sync_path(self._path.parent)
        self._thread.start()
        return self

    def append(self, event: Event) -> None:
        """Append a row, completely or not at all; raises the error of an earlier failed sync."""
        with disk.wrap_os_errors(self._path):
            if self._failure:
                raise self._failure
            self._reopen()
            line = (to_json(event_to_row(event)) + "\n").encode()
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(28, os.strerror(28))  # ENOSPC: a full disk first writes less than was asked for
        self._dirty.set()

    def _reopen(self) -> None:
        """Open the file again if it was replaced, for example by an editor, or removed since it was opened."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self._path.name, dir_fd=self._folder), os.fstat(self._descriptor)):
                return
        new = self._open()
        os.dup2(new, self._descriptor, inheritable=False)
        os.close(new)

    def _open(self) -> int:
        return open_descriptor(self._path, flags=os.O_RDWR | os.O_CREAT | os.O_APPEND, folder=self._folder)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Sync what is left and close the file; raises the error of a failed sync."""
        self._closed.set()
        self._thread.join()
        os.close(self._descriptor)
        os.close(self._folder)
        if self._failure and error is None:
            with disk.wrap_os_errors(self._path):
                raise self._failure

    def _keep_synced(self) -> None:
        try:
            while not self._closed.wait(SYNC_EVERY):
                self._sync()
            self._sync()
        except OSError as error:
            self._failure = error

    def _sync(self) -> None:
        if self._dirty.is_set():
            self._dirty.clear()
            os.fsync(self._descriptor)

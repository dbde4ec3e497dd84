"""Lock files (flock): the kernel releases a lock when its process ends, however that happens."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llamactl.errors import DiskFull, InUse
from llamactl.storage.disk import make_dirs, wrap_os_errors

# Seconds to wait for a lock whose holder is unknown or has ended.
PATIENCE = 1.0


@contextmanager
def hold_lock(path: Path, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Hold an exclusive or a shared lock in a context; raises InUse with the process id of the holder.

    `patience` is how many seconds to wait for the lock; by default a holder that is known to be alive is not waited for.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    descriptor = _acquire(path, kind, patience)
    try:
        if not shared:
            _write_holder(descriptor, str(os.getpid()))
        yield
    finally:
        if not shared:
            _write_holder(descriptor, "")
        os.close(descriptor)


@contextmanager
def hold_removal_lock(folder: Path, path: Path) -> Iterator[None]:
    """Hold the lock at `path` of a folder that will be removed; raises InUse.

    On a disk too full for a lock file, lock the folder itself: without the file no other process holds that lock.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path))
        except DiskFull:
            with wrap_os_errors(folder):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                if not try_lock(descriptor, fcntl.LOCK_EX):
                    raise InUse(f"{folder} is in use by another process.", "It is being removed.", "Wait for it.") from None
        yield


def _write_holder(descriptor: int, pid: str) -> None:
    """Write the process id of a lock's holder, which is only for the message of InUse: the lock itself is the kernel's."""
    # A full disk may refuse the few bytes.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, pid.encode(), 0)


def _acquire(path: Path, kind: int, patience: float | None) -> int:
    """Open a lock file and lock it; return its descriptor. Raises InUse."""
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        descriptor = _open_lock(path)
        try:
            while not try_lock(descriptor, kind):
                holder = os.pread(descriptor, 20, 0).decode("ascii", "replace")
                if (patience is None and _is_alive(holder)) or time.monotonic() > deadline:
                    why = f"Process {holder} is writing there." if holder else "It has just started, or has a shared lock."
                    raise InUse(f"{path.parent} is in use by another process.", why, "Wait for it, or stop it.")
                # The holder has not written its process id yet, or only checks whether the lock is free.
                time.sleep(0.01)
            # A file that was removed or replaced meanwhile locks nothing: open it again.
            if is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open or create a lock file; raises WriteFailed, also if it is not a regular file."""
    with wrap_os_errors(path):
        make_dirs(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "It is not a regular file")
        return descriptor


def is_named(descriptor: int, path: Path) -> bool:
    """Check whether a path still names an open file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(descriptor))


def is_locked(path: Path) -> bool:
    """Check whether a process holds the lock at `path`; False if there is no such file or it can't be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    # Shared, so that two processes that check at the same time don't see each other.
    try:
        return not try_lock(descriptor, fcntl.LOCK_SH)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file without waiting; return False if another process holds its lock."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    """Check whether a process id, as read from a lock file, is that of a running process."""
    # Signal 0 only checks. Without the permission to signal it, the process is another user's.
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, ProcessLookupError):
        return False
    return True

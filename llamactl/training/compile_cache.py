"""Keep compiled code in the user's cache folder, and discard it when a process was killed while it compiled.

PyTorch's own place is a folder in /tmp, which is emptied when a computer starts. In it, a library of which a killed compiler
wrote only a part is loaded by each later run, which then ends by SIGBUS. Headers that it compiles stay there: a compiler knows
an unfinished one.
"""

import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from llamactl.errors import UserError
from llamactl.model.native_build import UNUSED, describe_processor
from llamactl.storage import locks
from llamactl.storage.home import cache_folder

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PREFIX, MARK = "compiled-", "unfinished-"
THIS_START = secrets.token_hex(8)
PATIENCE = 10.0  # seconds to wait for other processes that start, which may have a folder to discard


@contextmanager
def guard_compilation() -> Iterator[None]:
    """Compile within a context: into the cache folder, with a mark that stays if the process does not finish it.

    If a mark of an earlier process is found, all code is compiled again. A folder that was chosen by `TORCHINDUCTOR_CACHE_DIR`,
    or PyTorch's own where the cache folder can't be written, is used as it is.
    """
    mark = None
    with suppress(OSError, UserError):
        folder = compiled_code_folder()
        if os.environ.get(VARIABLE, str(folder)) == str(folder):
            with locks.hold_lock(folder.parent / ".compile.lock", patience=PATIENCE):
                mark = _open_mark(folder)
            os.environ[VARIABLE] = str(folder)
    try:
        yield
        # Not after an error, nor after Ctrl-C, which ends the compilers too.
        if mark is not None:
            with suppress(OSError):
                _mark_path(compiled_code_folder()).unlink()
    finally:
        if mark is not None:
            os.close(mark)


def compiled_code_folder() -> Path:
    """Return the folder of the code for this processor and this PyTorch: computers that share a home folder have one each."""
    parts = (torch.__version__, platform.python_version(), describe_processor())
    return cache_folder() / f"{PREFIX}{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:24]}"


def _open_mark(folder: Path) -> int:
    """Discard unfinished code, and return the descriptor of a mark that is locked while this process lives; raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    marks = set(folder.glob(f"{MARK}*")) - {_mark_path(folder)}
    # Their owners have ended. Another process that compiles now needs the folder as it is.
    if marks and not any(map(locks.is_locked, marks)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    os.utime(folder)
    _remove_unused(folder.parent)
    descriptor = os.open(_mark_path(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    locks.try_lock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _mark_path(folder: Path) -> Path:
    # The random part, as in a container that is started again the numbers of processes are the same.
    return folder / f"{MARK}{os.getpid()}-{THIS_START}"


def _remove_unused(parent: Path) -> None:
    """Remove the folders in which nothing was compiled for `UNUSED` seconds."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.lstat().st_mtime > UNUSED:
                shutil.rmtree(folder)

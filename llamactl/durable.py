"""The one place that writes: a file or a folder appears complete or not at all, and survives a power cut."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llamactl.errors import DiskFull, UserError


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a draft beside `path`; when the block ends well, sync it and rename it to `path`."""
    draft = path.with_name(f".{path.name}.draft")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Give a draft folder to fill; when the block ends well, sync it and rename it to `folder`."""
    draft = folder.with_name(f".{folder.name}.draft")
    with explained(folder):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            for path in draft.iterdir():
                path.chmod(draft.stat().st_mode & 0o666)  # safetensors writes for its owner alone
                sync(path)
            sync(draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        sync(folder.parent)


def write(path: Path, content: str | bytes) -> None:
    """Write a small file durably."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove(folder: Path) -> None:
    """Remove a folder so that it never stands there half: it loses its name first."""
    doomed = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Have the kernel put a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        full = error.errno in (28, 122)  # ENOSPC, EDQUOT
        kind = DiskFull if full else UserError
        fix = "Free some space and run the same command again; what was finished is kept." if full else ""
        free = f" {free_bytes(path) / 1e6:,.1f} MB are free." if full else ""
        raise kind(f"Can't write {path}.", f"{error.strerror or error}.{free}", fix) from error


def free_bytes(path: Path) -> int:
    """What is free on the disk that a path is, or will be, on."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free

"""Read the files of runs, datasets and checkpoints safely, and read and write strict JSON.

Such a file may come from anybody. It is opened without following links, must be a regular file (opening a FIFO would block) of
bounded size, and its JSON must be strict (RFC 8259: no NaN, no Infinity). Every defect raises DataError with the file's name.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import from_json

from llamactl.errors import DataError, OutOfSpace

# Bytes of a JSON, TOML or tokenizer file; a tokenizer with a vocabulary of 1M takes some 40 MB.
LARGEST_RECORD = 64 << 20
# Bytes: after each part a thread waits for its turn, which takes longer than hashing a megabyte.
HASHED_AT_ONCE = 4 << 20

# Matches every number that may overflow a float, and some strings: only these texts are checked a second time.
_MAY_OVERFLOW = re.compile(rb"\d[eE]\+?\d{3}|\d{300}")

# Opening a link with O_NOFOLLOW fails with one of these.
_LINK_ERRORS = (errno.ELOOP, errno.EMLINK)

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Record(BaseModel):
    """Immutable contents of a JSON file; unknown keys and values of another type are errors.

    Fields named in `added` are newer than the first files: they are written only if they differ from their default, so that
    the bytes and digests of older files stay valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _omit_added_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        omitted = {name for name in self.added if getattr(self, name) == fields[name].get_default(call_default_factory=True)}
        return {name: value for name, value in serialize(self).items() if name not in omitted}


T = TypeVar("T", bound=Record)


@contextmanager
def open_file(path: Path, root: Path | None = None, limit: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file for reading; no part of `path` below `root` (default: its folder) may be a link.

    Raises DataError if it is missing, a link, not a regular file, or larger than `limit` bytes.
    """
    with os.fdopen(open_descriptor(path, root), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise DataError(f"{path} is damaged.", f"It has {size:,} bytes; at most {limit:,} are allowed.")
        yield file


def open_descriptor(path: Path, root: Path | None = None, flags: int = os.O_RDONLY, folder: int | None = None) -> int:
    """Open a regular file below `root` as `open_file` does; return its descriptor. Raises DataError.

    `folder` is an open descriptor of the file's folder, which is used instead of its path. With `os.O_CREAT` in
    `flags`, create a missing file; errors of writing, such as a full disk, are raised as OSError then.
    """
    try:
        descriptor = _open_in(folder, path.name, flags) if folder is not None else _open_below(path, root or path.parent, flags)
    except OSError as error:
        # Too many open files: an error of the process or the system, not of this file.
        if error.errno in (errno.EMFILE, errno.ENFILE):
            fix = "Allow more open files: ulimit -n 4096"
            raise OutOfSpace(f"The system refused to open {path}.", f"{error.strerror}.", fix) from error
        if flags & os.O_CREAT and error.errno not in _LINK_ERRORS:
            raise
        raise DataError(f"{path} is missing or damaged.", _explain_os_error(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} is damaged.", "It is not a regular file.")
    return descriptor


def list_folder(folder: Path, root: Path | None = None) -> list[str]:
    """List the names in a folder, sorted; empty if it is missing. Raises DataError for a link or a file."""
    try:
        descriptor = _open_folder(folder, root or folder.parent)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder} is damaged.", _explain_os_error(error)) from error
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder, without following links."""
    # Files may be removed meanwhile, as a trainer prunes checkpoints: they count as 0.
    size, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        size += entry.stat(follow_symlinks=False).st_size
    return size


def hash_file(path: Path, root: Path | None = None, limit: int | None = None) -> str:
    """Return the sha256 of a file opened with `open_file`, 64 hexadecimal digits; raises DataError."""
    digest = hashlib.sha256()
    with open_file(path, root, limit) as file:
        try:
            while part := file.read(HASHED_AT_ONCE):
                digest.update(part)
            return digest.hexdigest()
        except OSError as error:
            raise DataError(f"{path} can't be read.", f"{error.strerror}.") from error


def check_file(path: Path, root: Path | None = None) -> int:
    """Check a file as `open_file` does, for a library that opens it by path; return its size in bytes."""
    with open_file(path, root) as file:
        return os.fstat(file.fileno()).st_size


def read_file(path: Path, root: Path | None = None, limit: int = LARGEST_RECORD) -> bytes:
    """Read a file of at most `limit` bytes opened with `open_file`; raises DataError."""
    with open_file(path, root, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise DataError(f"{path} can't be read.", f"{error.strerror}.") from error


def read_text(path: Path, root: Path | None = None, limit: int = LARGEST_RECORD) -> str:
    """Read a file of UTF-8 text of at most `limit` bytes; raises DataError."""
    try:
        return read_file(path, root, limit).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged.", f"It is not UTF-8: {error}.") from error


def parse_json(data: bytes | str) -> Any:
    """Parse strict JSON of bounded depth; raises ValueError for all else, such as NaN, Infinity and 1e999."""
    # pydantic's parser limits the depth, but reads 1e999 as infinity.
    tree = from_json(data, allow_inf_nan=False)
    if (
        _MAY_OVERFLOW.search(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        and _finite(tree) != tree
    ):
        raise ValueError("a number is too large")
    return tree


def read_object(path: Path, root: Path | None = None) -> dict[str, Any]:
    """Read a file with one JSON object; raises DataError."""
    try:
        tree = parse_json(read_file(path, root))
    except ValueError as error:
        raise DataError(f"{path} is damaged.", f"It is not JSON: {error}.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} is damaged.", "It is not a JSON object.")
    return tree


def read_record(path: Path, kind: type[T], root: Path | None = None) -> T:
    """Read a JSON file as a record of type `kind`; raises DataError with the file and the first wrong field."""
    try:
        return kind.model_validate_json(read_file(path, root))
    except ValidationError as error:
        raise DataError(f"{path} is missing or damaged.", explain_error(error)) from error


def explain_error(error: ValidationError) -> str:
    """Describe the first wrong field in a sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}." if place else f"{first['msg']}."


def look_up(tree: object, *keys: str) -> Any:
    """Return the value at a path of keys in nested JSON objects; None if there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def to_json(value: Any, indent: int | None = None) -> str:
    """Convert a value to strict JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace all floats that are not finite by None, recursively."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _open_below(path: Path, root: Path, flags: int) -> int:
    """Open `path` from `root` folder by folder, without following links; raises OSError."""
    parent = _open_folder(path.parent, root)
    try:
        return _open_in(parent, path.name, flags)
    finally:
        os.close(parent)


def _open_in(folder: int, name: str, flags: int) -> int:
    """Open a file in the folder with that descriptor, without following a link; raises OSError."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer forever; it has no effect on a regular file.
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)


def _open_folder(folder: Path, root: Path) -> int:
    """Open `root` or a folder below it, without following links below it; raises OSError."""
    # Level by level: O_NOFOLLOW refuses a link only as the last part of a path.
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in folder.relative_to(root).parts:
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        finally:
            os.close(current)
        current = inner
    return current


def _explain_os_error(error: OSError) -> str:
    """Say why a file was refused, in a sentence."""
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return "It is not a regular file."
    if error.errno in _LINK_ERRORS:
        return "It is a link; runs, datasets and checkpoints contain none."
    return f"{error.strerror}."

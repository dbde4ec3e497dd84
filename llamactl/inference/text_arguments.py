"""Read texts that users name or type: a file, `-` for stdin, or the text itself.

Bytes are decoded strictly (`text_files.py`), reads are bounded, and no read blocks forever: neither on a FIFO nor on a stdin
that another program left open.
"""

import errno
import io
import os
import select
import stat
import sys
from contextlib import suppress
from pathlib import Path

from llamactl.corpus.text_files import decode_text
from llamactl.errors import DataError, UsageError

STDIN = "-"
LARGEST = 64 << 20  # bytes
CHUNK = 1 << 20  # bytes
PATIENCE = 5.0  # seconds to wait for the first byte of stdin where the user did not ask to read it
SUFFIXES = {
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".htm", ".xml", ".log", ".srt", ".py", ".csv", ".tsv", ".json", ".jsonl",
    ".ndjson", ".parquet", ".arrow", ".yaml", ".toml", ".gz", ".zst", ".xz", ".bz2", ".zip", ".pdf", ".docx", ".epub",
}  # fmt: skip


def read_argument(text: str) -> str:
    """Read an argument that is a file, `-` for stdin or the text itself; raises DataError for a path without a file.

    It is a file when one exists; an argument that looks like a path must be one.
    """
    if text == STDIN:
        return read_stdin()
    if os.path.lexists(text):
        return read_text_file(text)
    if _looks_like_path(text):
        raise DataError(
            f"There is no file {text}.", "It looks like a file's name.", f'To use these words as the text: --text "{text}"'
        )
    return check_literal(text)


def check_literal(text: str, what: str = "The text") -> str:
    """Return a typed text unchanged; raises UsageError when the terminal sent bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = "The bytes of this argument are in another encoding than UTF-8."
        raise UsageError(
            f"{what} is not UTF-8 text.", why, "Put it into a file, or set a UTF-8 locale: export LC_ALL=C.UTF-8"
        ) from error
    return text


def read_text_file(path: str | Path) -> str:
    """Read a file, or stdin for `-`; raises DataError when it can't be read, is larger than 64 MiB or is not text."""
    if str(path) == STDIN:
        return read_stdin()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read.", f"{getattr(error, 'strerror', None) or error}.") from error
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise DataError(f"{path} is a folder.", "", "Name a file.")
        data = _read(descriptor, str(path))
    finally:
        os.close(descriptor)
    return _decode(data, str(path))


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a text file; a line ends only at a line feed, alone or after a carriage return.

    In JSON and in prose, U+2028, U+0085 and form feeds are parts of a line.
    """
    return [line.removesuffix("\r") for line in read_text_file(path).split("\n")]


def read_stdin() -> str:
    """Read all of stdin without a time limit; raises DataError when it is larger than 64 MiB or not text."""
    return _decode(_read_stdin(None), "stdin")


def read_piped() -> str | None:
    """Read stdin if something is piped into it; returns None for a terminal and for a closed, empty or silent stdin."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    return _decode(_read_stdin(PATIENCE), "stdin") or None


def _read_stdin(patience: float | None) -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        return b""
    try:
        descriptor = sys.stdin.fileno()
    except (io.UnsupportedOperation, ValueError):  # stdin has no descriptor: a program embeds this one
        data = sys.stdin.buffer.read(LARGEST + 1)
        return _bounded(data, "stdin")
    return _read(descriptor, "stdin", patience)


def _read(descriptor: int, name: str, patience: float | None = PATIENCE) -> bytes:
    """Read to the end; returns nothing if no byte arrives within `patience` seconds. Raises DataError."""
    parts, size = [], 0
    try:
        if not select.select([descriptor], [], [], patience)[0]:
            return b""
        while size <= LARGEST:
            try:
                part = os.read(descriptor, CHUNK)
            except BlockingIOError:
                select.select([descriptor], [], [])
                continue
            if not part:
                break
            parts.append(part)
            size += len(part)
    except OSError as error:
        if error.errno == errno.EBADF:  # stdin was closed
            return b""
        raise DataError(f"{name} can't be read.", f"{error.strerror}.") from error
    return _bounded(b"".join(parts), name)


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > LARGEST:
        raise DataError(f"{name} is too large.", f"It has more than {LARGEST >> 20} MiB; a text to be read at once has less.")
    return data


def _decode(data: bytes, name: str) -> str:
    try:
        text = decode_text(data)
    except DataError as error:
        guess = error.fix.partition("--encoding ")[2] or "ENCODING"
        source = "" if name == "stdin" else f" {name}"
        fix = f"Convert it: iconv -f {'ENCODING' if guess == 'NAME' else guess} -t UTF-8{source}"
        raise DataError(f"{name} is not UTF-8 text.", error.why or error.what, fix) from error
    if "\0" in text:
        raise DataError(f"{name} is not text.", f"It has a NUL character at {text.index(chr(0)):,}.")
    return text


def _looks_like_path(text: str) -> bool:
    """Check whether an argument looks like a file name: it has a known suffix, or a separator and no space."""
    with suppress(ValueError):
        known = Path(text).suffix.lower() in SUFFIXES and "\n" not in text
        spaced = any(character.isspace() for character in text)
        return (known and (not spaced or text.startswith(("/", "./", "../", "~/")))) or (os.sep in text and not spaced)
    return False

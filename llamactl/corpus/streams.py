"""Bytes and text of a file that may be compressed: opened once, then unpacked and decoded block by block in bounded memory.

Only this module unpacks files (`open_stream`), limits how large they may become (`Allowance`), and marks bytes that are not
text (`Decoded`), so that a bad byte affects only the document that contains it.
"""

import codecs
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llamactl.corpus.kinds import describe_magic
from llamactl.corpus.text_files import choose_encoding, encoding_option, guess_encoding, guess_wide, show_name
from llamactl.corpus.unreadable import SKIP, Unreadable
from llamactl.errors import DataError

if TYPE_CHECKING:
    from llamactl.corpus.parts import Part

LONGEST_SKIPPED = 256 << 20  # bytes of a line that is left out; a longer one ends the work, which would take minutes
BLOCK = 1 << 20  # bytes that are read at once
HEAD = 64 << 10  # bytes that show whether a file is text

# Text packs 3 to 10 times, logs 50 times. What becomes more than that is a bomb, whatever the format.
MOST_UNPACKED = 200
FREE_UNPACKED = 64 << 20  # bytes that any file may become

_MARK = "llamactl-mark"
_MARKED = re.compile("[\udc00-\udcff]")
_OTHER_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of characters, as JSON can spell them: no mark of a UTF-8 byte
_marks = 0


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Replace each byte that is not text by a lone surrogate, which no valid text contains."""
    global _marks
    if not isinstance(error, UnicodeDecodeError):
        raise error
    # A count, not a search in each block: a decoder that met no bad byte leaves it as it was.
    _marks += 1
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_MARK, _mark)


class Allowance:
    """The number of bytes that a file may still unpack to, against decompression bombs."""

    def __init__(self, location: str, stored: int) -> None:
        """Allow a multiple of the `stored` bytes of the file at `location`."""
        self._location, self._left = location, FREE_UNPACKED + MOST_UNPACKED * stored

    def take(self, size: int) -> None:
        """Subtract bytes that were or will be unpacked; raises DataError when nothing is left."""
        self._left -= size
        if self._left < 0:
            why = f"It unpacks to more than {MOST_UNPACKED} times its size, as no text does."
            raise DataError(
                f"{self._location} is refused.", why, "If you trust it, unpack it first and prepare what comes out."
            )


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed file, counted; errors of all libraries become OSError."""

    def __init__(self, packed: Any, allowance: Allowance) -> None:
        self._packed, self._allowance = packed, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        try:
            data = self._packed.read(len(view))
        except (OSError, EOFError):
            raise
        except Exception as error:  # lzma.LZMAError and zlib.error have no base but this one
            raise OSError(str(error)) from error
        self._allowance.take(len(data))
        view[: len(data)] = data
        return len(data)


def open_regular(location: str) -> BinaryIO:
    """Open a regular file for reading; raises OSError for any other kind, instead of waiting for a pipe's writer."""
    # O_NONBLOCK: to open a pipe without a writer would block before its type can be checked.
    descriptor = os.open(location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file, as they are stored; raises OSError."""
    with open_regular(str(path)) as file:
        return file.read(HEAD)


def open_stream(location: str) -> BinaryIO:
    """Open a file and unpack it as its name says; raises OSError, later DataError if it is a decompression bomb."""
    file = open_regular(location)
    suffix = Path(location).suffix.lower()
    if suffix in (".xz", ".lzma"):
        import lzma

        packed: Any = lzma.LZMAFile(file)  # noqa: SIM115  # closed with what reads it
    elif suffix in PACKERS:
        import pyarrow

        packed = pyarrow.CompressedInputStream(file, PACKERS[suffix])
    else:
        return file
    stored = os.fstat(file.fileno()).st_size
    return io.BufferedReader(_Unpacked(packed, Allowance(location, stored)), BLOCK)


PACKERS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


class Decoded:
    """The text of a file, block by block; a byte that is not text becomes a mark, which `check` finds."""

    def __init__(self, part: "Part") -> None:
        """Decode a part by its byte order mark, else by `part.encoding`, else as UTF-8."""
        self._part = part
        self._marked = False
        self._encoding = ""
        self._guess: str | None = None

    @property
    def location(self) -> str:
        """Return the path of the file."""
        return self._part.location

    def __iter__(self) -> Iterator[str]:
        """Yield blocks of text with line ends as they are; raises Unreadable for a file whose first bytes are not text."""
        with open_stream(self._part.location) as file:
            block = file.read(BLOCK)
            self._encoding, start = choose_encoding(block, self._part.encoding)
            # A byte order mark is proof enough of text.
            if not start:
                self._refuse_other_kinds(block)
            decoder = codecs.getincrementaldecoder(self._encoding)(_MARK)
            # The codecs utf_16_le and the like keep a byte order mark as a character.
            block = block[start:]
            while block:
                yield self._decode(decoder, block)
                block = file.read(BLOCK)
            yield self._decode(decoder, b"", final=True)

    def check(self, text: str, place: str) -> str | Unreadable:
        """Return the text, or an Unreadable when some of its bytes are not text; `place` says where it begins."""
        if not self._marked or not (found := _MARKED.search(text)):
            return text
        # The marks are those of surrogateescape, so UTF-8 gets its original bytes back for the guess.
        marked = _OTHER_HALVES.sub("?", text)
        data = marked.encode("utf-8", "surrogateescape" if self._encoding == "utf_8" else "replace")
        if self._guess is None:
            self._guess = guess_encoding(data) if self._encoding == "utf_8" else ""
        line = text.count("\n", 0, found.start()) + 1
        why = f"Byte 0x{ord(found[0]) - 0xDC00:02x} in line {line:,} of it is no text."
        fix = f"{encoding_option(self._guess)}, or leave it out: --max-bad-docs 1" if self._guess else SKIP
        guess = f" It looks like {self._guess}." if self._guess else ""
        return Unreadable(f"{place} is not {show_name(self._encoding)} text.", why + guess, fix, len(data))

    def _decode(self, decoder: codecs.IncrementalDecoder, block: bytes, final: bool = False) -> str:
        before = _marks
        text = decoder.decode(block, final)
        self._marked |= _marks > before
        return text

    def _refuse_other_kinds(self, head: bytes) -> None:
        """Raise Unreadable for a known binary format, and for UTF-16 without a mark, part of which is valid UTF-8."""
        part = self._part
        what = f"{part.location} is not UTF-8 text."
        if found := describe_magic(head):
            raise Unreadable(what, f"It is {found.name}.", found.way_out(part.location), part.size)
        if not part.encoding and (guess := guess_wide(head)):
            raise Unreadable(what, f"It looks like {guess}.", encoding_option(guess), part.size)


def read_lines(source: Decoded, limit: int) -> Iterator[str | int]:
    """Yield lines without their line feeds; for a line of more than `limit` characters yield its size in bytes instead."""
    pending: list[str] = []
    held = dropped = 0
    for block in source:
        *whole, rest = block.split("\n")
        for line in whole:
            if not pending and not dropped and len(line) <= limit:
                yield line
                continue
            if dropped or held + len(line) > limit:
                yield dropped + _size([*pending, line])
            else:
                yield "".join([*pending, line])
            pending, held, dropped = [], 0, 0
        if dropped or held + len(rest) > limit:
            dropped += _size([*pending, rest])
            pending, held = [], 0
            if dropped > LONGEST_SKIPPED:
                why = f"One is longer than {LONGEST_SKIPPED >> 20} MiB."
                raise DataError(f"{source.location} is not a file of lines.", why, "Look at it: head -c 1000 FILE")
        elif rest:
            pending.append(rest)
            held += len(rest)
    if pending or dropped:
        yield dropped if dropped else "".join(pending)


def _size(texts: list[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)

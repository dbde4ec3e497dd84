"""Unpacked sizes of the messages of an Arrow file, read from their metadata alone.

pyarrow unpacks a message in one step and allocates the memory that its metadata asks for. This module checks first. It reads
the framing of the IPC format (https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format) and the few
flatbuffer fields that locate the buffers of a message. A compressed buffer starts with its unpacked size.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

CONTINUES = 0xFFFFFFFF  # begins each message since Arrow 0.15
LONGEST_HEAD = 256 << 20  # bytes
DICTIONARY, RECORDS = 2, 3  # kinds of messages that hold buffers
UNPACKED = -1  # stands for the size of a buffer that would have grown by packing


def unpacked_sizes(file: BinaryIO) -> Iterator[int]:
    """Yield the unpacked bytes of the compressed buffers of each message, from the position of `file`; raises ValueError."""
    try:
        while head := _head(file):
            start = file.tell()
            kind, body_size, buffers = _buffers(head)
            total = 0
            for offset, size in buffers:
                # Offsets come from the file and may be damaged: without this check a seek could leave the message.
                if not 0 <= offset <= offset + size <= body_size:
                    raise ValueError("a buffer is outside of its message")
                # A compressed buffer starts with its unpacked size (int64); an empty one has no bytes at all.
                if size >= 8:
                    file.seek(start + offset)
                    (unpacked,) = struct.unpack("<q", file.read(8))
                    total += size if unpacked == UNPACKED else max(0, unpacked)
            if kind in (DICTIONARY, RECORDS):
                yield total
            file.seek(start + body_size)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a message is damaged: {error}") from error


def _head(file: BinaryIO) -> bytes:
    """Read the metadata (a flatbuffer) before a body; empty at the end of the file. Raises ValueError for a truncated one."""
    word = file.read(4)
    if len(word) < 4:
        return b""
    (size,) = struct.unpack("<I", word)
    if size == CONTINUES:
        (size,) = struct.unpack("<I", file.read(4))
    if size > LONGEST_HEAD:
        raise ValueError(f"a message has metadata of {size:,} bytes")
    head = file.read(size)
    if len(head) < size:
        raise ValueError("it ends within a message")
    return head


def _buffers(head: bytes) -> tuple[int, int, list[tuple[int, int]]]:
    """Return the type of a message, the bytes of its body, and the (offset, size) of each compressed buffer in the body."""
    # Fields of Message: 1 header type, 2 header, 3 body length; of RecordBatch: 2 buffers, 3 compression.
    message = _Table(head, _follow(head, 0))
    kind = head[message.field(1)] if message.field(1) else 0
    body_size = struct.unpack_from("<q", head, message.field(3))[0] if message.field(3) else 0
    if body_size < 0:
        raise ValueError("a message has a negative body size")
    if kind not in (DICTIONARY, RECORDS):
        return kind, body_size, []
    batch = message.table(2)
    if kind == DICTIONARY:
        # A DictionaryBatch wraps a RecordBatch in its field 1.
        batch = batch.table(1)
    if not batch.field(3) or not batch.field(2):  # not packed, or without buffers
        return kind, body_size, []
    vector = _follow(head, batch.field(2))
    # A vector is its length (uint32) and its elements: Buffer structs of two int64, offset and size.
    (count,) = struct.unpack_from("<I", head, vector)
    if vector + 4 + 16 * count > len(head):
        raise ValueError("a message lists more buffers than its metadata holds")
    return kind, body_size, [struct.unpack_from("<qq", head, vector + 4 + 16 * index) for index in range(count)]


def _follow(data: bytes, position: int) -> int:
    """Return the position that the relative offset stored at `position` points to."""
    return int(position + struct.unpack_from("<I", data, position)[0])


class _Table:
    """A table of a flatbuffer, whose fields are known by their number (https://flatbuffers.dev/internals)."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._vtable = position - struct.unpack_from("<i", data, position)[0]
        if not 0 <= self._vtable < len(data):
            raise ValueError("an offset points outside of the metadata")
        (self._size,) = struct.unpack_from("<H", data, self._vtable)

    def field(self, number: int) -> int:
        """Return the position of a field; 0 when it is absent."""
        # The vtable starts with two uint16, its own size and the table's, then has an offset for each field.
        entry = 4 + 2 * number
        offset = struct.unpack_from("<H", self._data, self._vtable + entry)[0] if entry < self._size else 0
        return self._position + offset if offset else 0

    def table(self, number: int) -> "_Table":
        """Return the table that a field points to; raises ValueError when the field is absent."""
        if not self.field(number):
            raise ValueError("a message has no content")
        return _Table(self._data, _follow(self._data, self.field(number)))

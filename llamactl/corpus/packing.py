"""Pack conversations into rows of equal length, so that little of a row is left empty and no conversation is cut."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BUFFER = 1 << 22  # tokens that are packed together: more fill rows no better


class Row(NamedTuple):
    """The tokens of a row (uint32), and the number of conversations in it."""

    tokens: np.ndarray
    conversations: int


class RowPacker:
    """Packs conversations into rows of `width` tokens; what is left of a row is the token `fill`.

    Best fit decreasing over a buffer: the longest first, each into the row that it fills most. The same conversations in the
    same order give the same rows.
    """

    def __init__(self, width: int, fill: int) -> None:
        """Start with an empty buffer."""
        self._width, self._fill = width, fill
        self._buffer: list[list[int]] = []
        self._held = 0

    def add(self, conversation: list[int]) -> Iterator[Row]:
        """Take a conversation, at most as long as a row; yield rows when there is enough to fill them well."""
        self._buffer.append(conversation)
        self._held += len(conversation)
        if self._held >= BUFFER:
            yield from self.finish()

    def finish(self) -> Iterator[Row]:
        """Yield the rows of all conversations that are left."""
        packed: list[list[list[int]]] = []
        room: list[tuple[int, int]] = []  # the tokens left in each row that is not full, and its number, sorted
        for each in sorted(self._buffer, key=len, reverse=True):  # stable: equally long ones keep their order
            place = bisect_left(room, (len(each), 0))
            left, number = room.pop(place) if place < len(room) else (self._width, len(packed))
            if number == len(packed):
                packed.append([])
            packed[number].append(each)
            if left > len(each):
                insort(room, (left - len(each), number))
        self._buffer, self._held = [], 0
        for parts in packed:
            row, joined = np.full(self._width, self._fill, dtype=np.uint32), [token for part in parts for token in part]
            row[: len(joined)] = joined
            yield Row(row, len(parts))

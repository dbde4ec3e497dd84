"""Read text from all over a split, or from documents, in passages of a few pages."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from llamactl.corpus.memmap import read_tokens, shard_lengths
from llamactl.tokenizer.bpe import Tokenizer

PASSAGE = 8_000  # bytes


def split_passages(shards: Sequence[np.ndarray], tokenizer: Tokenizer, limit: int, bytes_per_token: float) -> Iterator[str]:
    """Yield passages of a split, each of one document or turn: about `limit` bytes, evenly spread, or all there are.

    Raises DataError when a shard has changed since it was opened.
    """
    size = max(16, round(PASSAGE / max(bytes_per_token, 1e-9)))  # tokens
    lengths = shard_lengths(shards)
    ends = list(accumulate(-(-length // size) for length in lengths))
    total = ends[-1] if ends else 0
    for number in range(wanted := min(total, max(1, limit // PASSAGE))):
        place = number * total // wanted
        shard = bisect_right(ends, place)
        start = (place - (ends[shard - 1] if shard else 0)) * size
        ids = read_tokens(shards, shard, start, min(start + size, lengths[shard]))
        # Control tokens end a document or a turn of a conversation; without them turns would run together.
        for part in np.split(ids, np.flatnonzero(tokenizer.byte_lengths[ids] == 0) + 1):
            # A character that is cut in two at either end is no text.
            if (text := tokenizer.decode(part.tolist()).strip("\N{REPLACEMENT CHARACTER}")) and not text.isspace():
                yield text


def cut_passages(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Yield the passages of documents from the first on, until they have `limit` characters."""
    read = 0
    for text in documents:
        for start in range(0, len(text), PASSAGE):
            if read >= limit:
                return
            yield text[start : start + PASSAGE]
            read += PASSAGE

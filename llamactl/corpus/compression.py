"""Measure how well a text compresses, which tells how well it can be predicted."""

import bz2
from collections.abc import Sequence

import numpy as np

from llamactl.corpus.memmap import read_tokens, shard_lengths
from llamactl.tokenizer.bpe import Tokenizer

PIECES, PIECE = 64, 8_192  # pieces of text that are compressed, and tokens of each


def measure_compression(shards: Sequence[np.ndarray], tokenizer: Tokenizer) -> float:
    """Return the bits per byte to which bzip2 compresses the text of shards, measured on pieces from all over it."""
    text = b"".join(read_pieces(shards, tokenizer))
    return 8 * len(bz2.compress(text)) / max(1, len(text))


def read_pieces(shards: Sequence[np.ndarray], tokenizer: Tokenizer) -> list[bytes]:
    """Decode pieces of text, evenly spaced over at most PIECES shards."""
    read = shards[:: -(-len(shards) // PIECES)]
    pieces = []
    for shard, length in enumerate(shard_lengths(read)):
        # Not more than have room without overlap: bzip2 would compress a repeated text to almost nothing.
        count = max(1, min(PIECES // len(read), length // PIECE))
        for start in np.linspace(0, max(0, length - PIECE), count).astype(int):
            ids = read_tokens(read, shard, int(start), int(start) + PIECE)
            pieces.append(tokenizer.decode(ids[ids != tokenizer.end].tolist()).encode())
    return pieces

"""The loss to expect of a run, from runs that were measured and from how well its text compresses."""

import bz2
import math
from dataclasses import dataclass

import numpy as np

from llamactl.artifacts import Dataset
from llamactl.config import ModelConfig
from llamactl.training.sizing import matrix_weights

# Bits per byte of mixed English are FLOOR + A / N^a + B / D^b (the form of Hoffmann et al. 2022, arXiv 2203.15556), for N
# million weights in matrices and D million tokens: fitted to runs of ours and to published ones (docs/recipe.md).
FLOOR = 0.814
A, A_EXPONENT = 0.208, 0.35
B, B_EXPONENT = 0.960, 0.2122

# What bzip2 makes of that text, in bits per byte. Another text's loss is higher or lower by a power of the ratio: the
# addresses of the sample corpus, which it makes 1.95 bits of, fix the power.
COMPRESSED, POWER = 2.388, 1.65

UNCERTAINTY = 0.1  # of a loss, either way: the largest residual of the fit is 0.06
REPEATS_WORTH = 15.4  # epochs after which reading again teaches little (Muennighoff et al. 2023, arXiv 2305.16264)

PIECES, PIECE = 64, 8_192  # tokens that are decoded to see how well they compress


@dataclass(frozen=True)
class Expectation:
    """A loss on held-out text and its range, in nats a token, and in bits a byte."""

    loss: float
    low: float
    high: float
    bits_per_byte: float


def expect(model: ModelConfig, tokens: int, epochs: float, dataset: Dataset) -> Expectation:
    """The loss of a fresh model after so many tokens of a dataset, seen so many times."""
    fresh = tokens / max(1.0, epochs)
    again = max(0.0, epochs - 1)
    worth = fresh * (1 + REPEATS_WORTH * (1 - math.exp(-again / REPEATS_WORTH)))
    law = FLOOR + A * (matrix_weights(model) / 1e6) ** -A_EXPONENT + B * (worth / 1e6) ** -B_EXPONENT
    bits = law * (compressed(dataset) / COMPRESSED) ** POWER
    loss = bits * math.log(2) * dataset.info.total("train", "text_bytes") / max(1, dataset.info.total("train", "tokens"))
    most = math.log(dataset.info.vocab_size)  # what one who knows nothing has
    likely, low, high = (min(most, loss * share) for share in (1, 1 - UNCERTAINTY, 1 + UNCERTAINTY))
    return Expectation(likely, low, high, bits)


def compressed(dataset: Dataset) -> float:
    """Bits that bzip2 makes of a byte of a dataset's text, on pieces from all over it."""
    text = b"".join(_pieces(dataset))
    return 8 * len(bz2.compress(text)) / max(1, len(text))


def _pieces(dataset: Dataset) -> list[bytes]:
    """Pieces that do not overlap: what stands twice would compress to nothing."""
    shards = dataset.train[:: -(-len(dataset.train) // PIECES)]
    found = []
    for shard in shards:
        each = max(1, min(PIECES // len(shards), len(shard) // PIECE))
        for start in np.linspace(0, max(0, len(shard) - PIECE), each).astype(int):
            ids = shard[start : start + PIECE]
            found.append(dataset.tokenizer.decode(ids[ids != dataset.tokenizer.end].tolist()).encode())
    return found

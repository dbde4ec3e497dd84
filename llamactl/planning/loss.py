"""Predict the loss of a run, from a scaling law fitted to measured runs and from how well its text compresses."""

import math
from dataclasses import dataclass

from llamactl.config.parameters import num_params
from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset import Dataset
from llamactl.planning.defaults import TOKENS_PER_PARAMETER
from llamactl.planning.flops import num_matmul_params

# Bits per byte of mixed English are FLOOR + A / N^a + B / D^b (the form of Hoffmann et al. 2022, arXiv 2203.15556), for N
# million weights in matrices and D million tokens: fitted to our own and to published runs (docs/recipe.md).
FLOOR = 0.814
A, A_EXPONENT = 0.208, 0.35
B, B_EXPONENT = 0.960, 0.2122

# Bits per byte to which bzip2 compresses that mixed English. The loss on another text is scaled by a power of the ratio of
# the two; the power was fitted to the addresses of the sample corpus, with 1.95 bits.
COMPRESSED, POWER = 2.388, 1.65

UNCERTAINTY = 0.1  # a fraction of the loss, up and down: the largest residual of the fit is 0.06
# Epochs: the constant by which the worth of repeated text decays (Muennighoff et al. 2023, arXiv 2305.16264), for text that
# has 20 tokens per weight. With less it decays sooner: a million tokens for 2.4 million weights, read 12 to 24 times, were
# worth 3.2 million (docs/recipe.md), which the square root of the ratio meets.
REPEATS_WORTH = 15.4


@dataclass(frozen=True)
class LossPrediction:
    """A validation loss and its range in nats per token, and the loss in bits per byte."""

    loss: float
    low: float
    high: float
    bits_per_byte: float


def predict_loss(model: ModelConfig, tokens: int, epochs: float, dataset: Dataset) -> LossPrediction:
    """Predict the validation loss of a model trained from scratch on `tokens` of a dataset, which are some `epochs` of it."""
    # Repeated tokens count as fewer new ones (Muennighoff et al. 2023).
    unique = tokens / max(1.0, epochs)
    repeats = max(0.0, epochs - 1)
    worth = REPEATS_WORTH * min(1.0, math.sqrt(unique / (TOKENS_PER_PARAMETER * num_params(model))))
    effective = unique * (1 + worth * (1 - math.exp(-repeats / worth)))
    english = FLOOR + A * (num_matmul_params(model) / 1e6) ** -A_EXPONENT + B * (effective / 1e6) ** -B_EXPONENT
    bits = english * (dataset.compressed_bits_per_byte / COMPRESSED) ** POWER
    loss = bits * math.log(2) * dataset.info.total("train", "text_bytes") / max(1, dataset.info.total("train", "tokens"))
    # The loss of a uniform guess: the law is too high for models that have seen next to nothing.
    uniform = math.log(dataset.info.vocab_size)
    likely, low, high = (min(uniform, loss * factor) for factor in (1, 1 - UNCERTAINTY, 1 + UNCERTAINTY))
    return LossPrediction(likely, low, high, bits)

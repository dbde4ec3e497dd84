"""Dropout of whole channels, for training on a text that is read many times.

Each window of each step leaves out some channels of what the embedding and the sublayers write to the residual stream, at all
of its positions (variational dropout, Gal & Ghahramani 2016, arXiv 1512.05287). So a window needs few random numbers, which are
a function of its place in the run alone: neither processes nor micro-batches nor resuming change them.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from llamactl.config.schema import Config
from llamactl.corpus.batches import Batch, Batches
from llamactl.training.gradients import to_device


def load_micro_batches(batches: Batches, config: Config, device: torch.device, step: int, most: int) -> list[Batch]:
    """Load this rank's windows of a step onto the device, in micro-batches of up to `most`, with the dropout of each."""
    found, places = batches.micro_batches(step, most), batches.rank_places(step)
    if config.train.dropout:
        parts = (places[start : start + most] for start in range(0, len(found) * most, most))
        found = [batch._replace(dropout=channel_factors(part, config)) for batch, part in zip(found, parts, strict=True)]
    return [to_device(batch, device) for batch in found]


def channel_factors(places: np.ndarray, config: Config) -> Tensor | None:
    """Draw the factors of each window's channels, B 1+2L D: 0 with the probability `dropout`, else 1 / (1 - dropout).

    None for no window, as a rank has that only takes part.
    """
    share, model = config.train.dropout, config.model
    generator = torch.Generator()
    factors = torch.empty(len(places), 1 + 2 * model.n_layers, model.dim)
    for place, factor in zip(places, factors, strict=True):
        digest = hashlib.blake2b(f"{config.train.seed} dropout {place}".encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        factor.bernoulli_(1 - share, generator=generator).div_(1 - share)
    return factors if len(places) else None

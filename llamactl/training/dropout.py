"""The seeds of dropout: a function of a window's place in the run, whatever process, micro-batch or resumed run computes it."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from llamactl.config.schema import Config
from llamactl.corpus.batches import Batch, Batches
from llamactl.model.dropout import SPAN
from llamactl.training.gradients import to_device


def load_micro_batches(batches: Batches, config: Config, device: torch.device, step: int, most: int) -> list[Batch]:
    """Load this rank's windows of a step onto the device, in micro-batches of up to `most`, with the dropout of each."""
    found, places = batches.micro_batches(step, most), batches.rank_places(step)
    if config.train.dropout:
        parts = (places[start : start + most] for start in range(0, len(found) * most, most))
        found = [batch._replace(dropout=draw_seeds(part, config)) for batch, part in zip(found, parts, strict=True)]
    return [to_device(batch, device) for batch in found]


def draw_seeds(places: np.ndarray, config: Config) -> Tensor | None:
    """Draw, for each window, seeds and limits of the embedding and of each sublayer: B 1+2L 2, as `drop_elements` takes them.

    None for no window, as a rank has that only takes part.
    """
    rows = 1 + 2 * config.model.n_layers
    seeds = [
        np.frombuffer(hashlib.shake_128(f"{config.train.seed} dropout {place}".encode()).digest(4 * rows), np.int32)
        for place in places
    ]
    if not seeds:
        return None
    limits = np.full((len(seeds), rows), round(config.train.dropout * SPAN), np.int32)
    return torch.from_numpy(np.stack([np.stack(seeds), limits], axis=-1))

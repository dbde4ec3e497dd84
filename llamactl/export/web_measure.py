"""How good the weights of a page are: bits per byte on held-out text of the run's dataset, where that is at hand."""

import math
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from llamactl.config.parameters import num_params
from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.memmap import read_tokens, shard_lengths
from llamactl.corpus.openings import held_out_openings
from llamactl.errors import UserError
from llamactl.inference.evaluate import evaluate_streams
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import run_of
from llamactl.storage.records import look_up
from llamactl.tokenizer.bpe import Tokenizer

PLACES = 8  # of the held-out text
WORK = 5e10  # parameters times tokens of a measurement: a second on two CPU cores


@dataclass(frozen=True)
class HeldOut:
    """Held-out tokens of a dataset: how one of its documents begins, and pieces from all over it."""

    opening: str
    pieces: tuple[np.ndarray, ...]
    tokenizer: Tokenizer
    byte_lengths: np.ndarray

    @property
    def tokens(self) -> int:
        """Return the number of tokens that are measured."""
        return sum(len(piece) - 1 for piece in self.pieces)

    def bits_per_byte(self, model: Llama) -> float | None:
        """Measure a model; None where its losses are no numbers."""
        found = evaluate_streams(model, self.tokenizer, self.pieces, rests=False, byte_lengths=self.byte_lengths)
        return round(found.bits_per_byte, 5) if math.isfinite(found.bits_per_byte) else None


def dataset_name(path: Path) -> str:
    """Return the name of the dataset that a checkpoint was trained on; empty where that is not known."""
    with suppress(UserError, OSError):
        return run.config().data.name if (run := run_of(path)) else ""
    return ""


def find_held_out(path: Path, config: ModelConfig, tokenizer: Tokenizer) -> HeldOut | None:
    """Return held-out text of the dataset that a checkpoint was trained on; None if it is gone, or the model is another's."""
    run, name = run_of(path), dataset_name(path)
    if run is None or not name:
        return None
    with suppress(UserError, OSError):
        dataset = DatasetDir.from_name(name).open()
        # Of a dataset that was made again the run may have seen what is held out now.
        same = look_up(run.environment(), "dataset", "digest") in (None, dataset.info.digest)
        if same and dataset.tokenizer.is_same(tokenizer):
            pieces = tuple(_pieces(dataset, config.context, int(WORK / num_params(config))))
            openings = chain(held_out_openings(dataset, 1), [""])
            return HeldOut(next(openings), pieces, tokenizer, dataset.byte_lengths) if pieces else None
    return None


def _pieces(dataset: Dataset, context: int, tokens: int) -> list[np.ndarray]:
    """Read about so many tokens in all, in whole windows, from some places all over the held-out text."""
    lengths = shard_lengths(dataset.val)
    windows = [(shard, start) for shard, size in enumerate(lengths) for start in range(0, size - context, context)]
    each = max(1, tokens // (PLACES * context))
    pieces = []
    for place in range(0, len(windows), max(each, len(windows) // PLACES)):
        shard, start = windows[place]
        stop = start + each * context + 1
        pieces.append(
            read_tokens(dataset.val, shard, start, min(stop, start + 1 + (lengths[shard] - start - 1) // context * context))
        )
    return pieces

"""How well a model predicts a text: nats per token and bits per byte, each with its standard error over documents."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llamactl.corpus.batches import Batch, Windows
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.tokenizer import Tokenizer

AT_ONCE = 4_096  # tokens


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats a token; `by_position` has one for each place in a window, whose first tokens have little to go on."""

    documents: int
    tokens: int
    bytes: int
    loss: float
    loss_error: float
    bits_per_byte: float
    bits_per_byte_error: float
    by_position: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """As many choices as uncertain a model would be among."""
        return math.exp(self.loss)


class Ratio:
    """A sum over a sum, both by document, with the standard error of their quotient.

    Documents are the units, as tokens of one document are not independent (the ratio estimator of Cochran 1977, 2.11).
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._sums = np.zeros((2, 0))

    def add(self, documents: np.ndarray, above: np.ndarray, below: np.ndarray) -> None:
        """Count some values, each with the number of its document."""
        size = max(self._sums.shape[1], int(documents.max(initial=-1)) + 1)
        grown = np.zeros((2, size))
        grown[:, : self._sums.shape[1]] = self._sums
        for row, values in enumerate((above, below)):
            grown[row] += np.bincount(documents, values, minlength=size)
        self._sums = grown

    @property
    def documents(self) -> int:
        """How many had anything to count."""
        return int((self._sums[1] > 0).sum())

    @property
    def below(self) -> float:
        """The sum that is divided by."""
        return float(self._sums[1].sum())

    @property
    def value(self) -> float:
        """The quotient."""
        return float(self._sums[0].sum()) / max(1.0, self.below)

    @property
    def error(self) -> float:
        """Its standard error; infinite for less than two documents."""
        number = self.documents
        if number < 2:
            return math.inf
        residuals = self._sums[0] - self.value * self._sums[1]
        return math.sqrt(number / (number - 1) * float(np.square(residuals).sum())) / max(1.0, self.below)


def stream(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Texts as training has them: each ends with the end-of-text token, and one stands before the first."""
    end = np.array([tokenizer.end], dtype=np.uint32)
    return np.concatenate([end, *(part for text in texts for part in (tokenizer.encode(text), end))])


def evaluate(model: Llama, tokenizer: Tokenizer, shards: Iterable[np.ndarray], rests: bool) -> Evaluation:
    """Read all windows of some token streams, in the format the model's weights are in.

    With `rests` also what is left at a stream's end, which training leaves out. The end-of-text token counts as a token, as in
    training, but has no bytes, so that bits per byte depend on the text alone.
    """
    objective, lengths = NextToken(model), torch.from_numpy(tokenizer.byte_lengths)
    tokens, text, seen = Ratio(), Ratio(), 0
    positions = np.zeros((2, model.config.context))
    for inputs, targets, _ in _batches(shards, model.config.context, rests):
        device = model.lm_head.weight.device
        losses = objective.per_token(inputs.to(device), targets.to(device)).cpu().double()
        # A token belongs to the document after the last end before it.
        documents = seen + (inputs == tokenizer.end).flatten().cumsum(0)
        seen = int(documents[-1])
        wordy = (targets != tokenizer.end).flatten()
        tokens.add(documents.numpy(), losses.flatten().numpy(), np.ones(targets.numel()))
        text.add(documents.numpy(), (losses.flatten() * wordy).numpy(), lengths[targets].flatten().numpy())
        positions[:, : inputs.shape[1]] += losses.sum(0).numpy(), np.full(inputs.shape[1], float(len(inputs)))
    by_position = positions[0] / positions[1].clip(min=1)
    return Evaluation(
        documents=tokens.documents,
        tokens=round(tokens.below),
        bytes=round(text.below),
        loss=tokens.value,
        loss_error=tokens.error,
        bits_per_byte=text.value / math.log(2),
        bits_per_byte_error=text.error / math.log(2),
        by_position=tuple(by_position[positions[1] > 0].tolist()),
    )


def _batches(shards: Iterable[np.ndarray], context: int, rests: bool) -> Iterator[Batch]:
    """Windows in the order of the stream, some at once; rests alone, as they are shorter."""
    per_batch = max(1, AT_ONCE // context)
    for shard in shards:
        windows = Windows((shard,), context)
        for start in range(0, len(windows), per_batch):
            yield windows.batch(np.arange(start, min(start + per_batch, len(windows))))
        rest = torch.from_numpy(shard[len(windows) * context :].astype(np.int64))
        if rests and len(rest) > 1:
            yield Batch(rest[None, :-1], rest[None, 1:])

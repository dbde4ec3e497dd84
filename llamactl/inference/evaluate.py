"""Evaluate a model on text: nats per token and bits per byte, each with its standard error over documents."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llamactl.corpus.batches import Batch, Windows
from llamactl.corpus.targets import EVERY_TARGET, WindowRule
from llamactl.errors import DataError
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.tokenizer.bpe import Tokenizer

AT_ONCE = 4_096  # tokens of a batch
LARGEST_EXPONENT = 709.0  # largest x for which e to the x is finite in a float of 64 bits


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; losses are in nats per token.

    `by_position` is the mean loss at each position of a window, whose first tokens have little context.
    """

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
        """Return e to the loss: the number of equally likely tokens with the same loss. Infinite above the range of a float."""
        return math.exp(self.loss) if self.loss < LARGEST_EXPONENT else self.loss * math.inf


class Ratio:
    """A ratio of two sums over documents, with its standard error.

    Documents are the sampling units, as tokens of one document are not independent (the ratio estimator of Cochran 1977, 2.11).
    """

    def __init__(self) -> None:
        """Start with no documents."""
        self._sums = np.zeros((2, 0))

    def add(self, documents: np.ndarray, above: np.ndarray, below: np.ndarray) -> None:
        """Add values to the numerator (`above`) and the denominator (`below`); `documents` are the values' document numbers."""
        size = max(self._sums.shape[1], int(documents.max(initial=-1)) + 1)
        grown = np.zeros((2, size))
        grown[:, : self._sums.shape[1]] = self._sums
        for row, values in enumerate((above, below)):
            grown[row] += np.bincount(documents, values, minlength=size)
        self._sums = grown

    @property
    def documents(self) -> int:
        """Return the number of documents with a positive denominator."""
        return int((self._sums[1] > 0).sum())

    @property
    def below(self) -> float:
        """Return the denominator: the sum of `below` over all documents."""
        return float(self._sums[1].sum())

    @property
    def value(self) -> float:
        """Return the ratio of the two sums."""
        return float(self._sums[0].sum()) / max(1.0, self.below)

    @property
    def error(self) -> float:
        """Return the standard error of the ratio; infinite for fewer than two documents."""
        number = self.documents
        if number < 2:
            return math.inf
        residuals = self._sums[0] - self.value * self._sums[1]
        return math.sqrt(number / (number - 1) * float(np.square(residuals).sum())) / max(1.0, self.below)


def token_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Encode texts as in training: each ends with the end-of-text token, and the stream begins with one."""
    end = np.array(tokenizer.separator, dtype=np.uint32)
    return np.concatenate([end, *(part for text in texts for part in (tokenizer.encode(text), end))])


def evaluate_streams(
    model: Llama,
    tokenizer: Tokenizer,
    shards: Sequence[np.ndarray],
    rests: bool,
    byte_lengths: np.ndarray | None = None,
    rule: WindowRule = EVERY_TARGET,
) -> Evaluation:
    """Evaluate the model on all windows of token streams, in the dtype of its weights.

    `byte_lengths` are the bytes of text of each id, by default the tokenizer's. `rule` says which targets count.

    With `rests`, the incomplete last window of each stream counts too, which training omits. Control tokens count as tokens, as
    in training, but have no bytes, so that bits per byte depend on the text only. Raises DataError without any tokens.
    """
    objective = NextToken(model)
    lengths = torch.from_numpy(tokenizer.byte_lengths if byte_lengths is None else byte_lengths)
    tokens, text, seen = Ratio(), Ratio(), 0
    positions = np.zeros((2, model.config.context))
    device = model.lm_head.weight.device
    for inputs, targets, _, _, separate in _batches(shards, model.config.context, rests, rule):
        separate = None if separate is None else separate.to(device)
        losses = objective.per_token(inputs.to(device), targets.to(device), separate).cpu().double()
        # The document of a token is numbered by the end-of-text tokens before it.
        documents = seen + (inputs == tokenizer.end).flatten().cumsum(0)
        seen = int(documents[-1])
        counted = targets >= 0
        sizes = (lengths[targets.clamp(min=0)] * counted).flatten()
        tokens.add(documents.numpy(), losses.flatten().numpy(), counted.flatten().double().numpy())
        text.add(documents.numpy(), (losses.flatten() * (sizes > 0)).numpy(), sizes.numpy())
        positions[:, : inputs.shape[1]] += losses.sum(0).numpy(), counted.sum(0).double().numpy()
    if not tokens.below:
        raise DataError("There is nothing to measure.", "The text has no characters, or the split has less than one window.")
    return _summarize(tokens, text, positions)


def _summarize(tokens: Ratio, text: Ratio, positions: np.ndarray) -> Evaluation:
    """Build the result from the sums; `positions` are nats and tokens at each position of a window, 2 T."""
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


def _batches(shards: Sequence[np.ndarray], context: int, rests: bool, rule: WindowRule) -> Iterator[Batch]:
    """Yield the windows in stream order, in batches of about AT_ONCE tokens; an incomplete window is a batch of its own."""
    per_batch = max(1, AT_ONCE // context)
    for number in range(len(shards)):
        windows = Windows(shards[number : number + 1], context, rule)
        for start in range(0, len(windows), per_batch):
            yield windows.batch(np.arange(start, min(start + per_batch, len(windows))))
        rest = torch.from_numpy(windows.rest().astype(np.int64))
        if rests and len(rest) > 1:
            yield Batch(rest[None, :-1], rest[None, 1:])

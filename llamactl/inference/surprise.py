"""How surprised a model is at each piece of a text, and what it had expected in its place."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer

ALTERNATIVES = 5


@dataclass(frozen=True)
class Piece:
    """A token, or several where one holds only a part of a character: its text, and the nats it came as.

    `expected` are the likeliest tokens in the place of the first, each with its probability.
    """

    text: str
    nats: float
    expected: tuple[tuple[str, float], ...]

    @property
    def bits(self) -> float:
        """The surprise in bits: 1 is a coin's."""
        return self.nats / math.log(2)


@torch.inference_mode()
def surprise(model: Llama, tokenizer: Tokenizer, text: str) -> list[Piece]:
    """The pieces of a text, which the model reads from its beginning; after its first window a token has half a context."""
    ids = [tokenizer.end, *tokenizer.encode(text).tolist()]
    pieces: list[Piece] = []
    waiting, nats, expected = b"", 0.0, tuple[tuple[str, float], ...]()
    for token, scores in _scores(model, ids):
        logs = scores[: tokenizer.vocab_size].float().log_softmax(-1)
        if not waiting:
            expected = tuple(_expected(tokenizer, logs))
        waiting += tokenizer.decode_bytes([token])
        nats -= logs[token].item()
        if (whole := _decoded(waiting)) is not None:
            pieces.append(Piece(whole, nats, expected))
            waiting, nats = b"", 0.0
    return pieces


def bits_per_byte(pieces: list[Piece]) -> float:
    """The surprise of the whole text, as `eval` counts it but for the end of the text."""
    size = sum(len(piece.text.encode()) for piece in pieces)
    return sum(piece.bits for piece in pieces) / max(1, size)


def _scores(model: Llama, ids: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Each token after the first, and the scores it was to be picked by, V."""
    context = model.config.context
    done = 1
    while done < len(ids):
        start = 0 if done == 1 else done - context // 2
        window = ids[start : start + context + 1]
        rows = model(torch.tensor([window[:-1]], device=model.lm_head.weight.device))[0].cpu()
        for place in range(done, start + len(window)):
            yield ids[place], rows[place - start - 1]
        done = start + len(window)


def _expected(tokenizer: Tokenizer, logs: torch.Tensor) -> Iterator[tuple[str, float]]:
    for log, token in zip(*(each.tolist() for each in logs.topk(min(ALTERNATIVES, len(logs)))), strict=True):
        text = tokenizer.decode([token]) if token != tokenizer.end else "(end)"
        yield text, math.exp(log)


def _decoded(content: bytes) -> str | None:
    """The text of some bytes, or None where they end within a character."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and len(content) < 4
        return None if cut else content.decode("utf-8", "replace")

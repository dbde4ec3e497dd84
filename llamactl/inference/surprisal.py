"""Measure the surprisal of each token of a text, and what the model expected instead."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import Tokenizer

ALTERNATIVES = 5


@dataclass(frozen=True)
class Piece:
    """A token, or several tokens where one holds only a part of a character: its text and its surprisal in nats.

    `expected` holds the most likely tokens at the position of the first, each with its probability.
    """

    text: str
    nats: float
    expected: tuple[tuple[str, float], ...]

    @property
    def bits(self) -> float:
        """Return the surprisal in bits: 1 bit is that of a fair coin."""
        return self.nats / math.log(2)


@torch.inference_mode()
def measure_surprisal(model: Llama, tokenizer: Tokenizer, text: str) -> list[Piece]:
    """Measure the surprisal of each piece of a text, read from its beginning after an end-of-text token.

    After the first window, each token has at least half a context before it.
    """
    ids = tokenizer.encode_after_end(text)
    begin = len(ids) - len(tokenizer.encode(text))
    pieces: list[Piece] = []
    waiting, nats, expected = b"", 0.0, tuple[tuple[str, float], ...]()
    for token, scores in _scores(model, ids, begin):
        logs = scores[: tokenizer.vocab_size].float().log_softmax(-1)
        if not waiting:
            expected = tuple(_expected(tokenizer, logs))
        waiting += tokenizer.decode_bytes([token])
        nats -= logs[token].item()
        if (whole := _whole(waiting)) is not None:
            pieces.append(Piece(whole, nats, expected))
            waiting, nats = b"", 0.0
    return pieces


def bits_per_byte(pieces: list[Piece]) -> float:
    """Return the bits per byte of the full text, as `eval` computes them but without the end-of-text token."""
    size = sum(len(piece.text.encode()) for piece in pieces)
    return sum(piece.bits for piece in pieces) / max(1, size)


def _scores(model: Llama, ids: list[int], begin: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each token from place `begin` on with the logits (V) that predicted it."""
    context = model.config.context
    done = begin
    while done < len(ids):
        start = 0 if done == begin else done - context // 2
        window = ids[start : start + context + 1]
        rows = model(torch.tensor([window[:-1]], device=model.lm_head.weight.device))[0].cpu()
        for place in range(done, start + len(window)):
            yield ids[place], rows[place - start - 1]
        done = start + len(window)


def _expected(tokenizer: Tokenizer, logs: torch.Tensor) -> Iterator[tuple[str, float]]:
    for log, token in zip(*(each.tolist() for each in logs.topk(min(ALTERNATIVES, len(logs)))), strict=True):
        yield spell_token(tokenizer, token), math.exp(log)


def spell_token(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text; bytes that are only a part of a character become escapes as in llama.cpp: <0xF0>."""
    if token == tokenizer.end:
        return "(end)"
    text = tokenizer.decode_bytes([token]).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(each) - 0xDC00:02X}>" if "\udc80" <= each <= "\udcff" else each for each in text)


def _whole(content: bytes) -> str | None:
    """Decode bytes as UTF-8; returns None if they end within a character."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None

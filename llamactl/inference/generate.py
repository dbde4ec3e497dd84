"""Text after text: a prompt, a model, and what it goes on to say, as it says it."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from llamactl.model.decode import Picker, decode
from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """What to go on from, how far, and how to pick."""

    prompt: str
    max_new_tokens: int = 200
    samples: int = 1
    seed: int = 0
    pick: Picker = field(default_factory=Picker)


class Voice:
    """The tokens of one sample turned to text as they come; half characters wait for their other half."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start with nothing said."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.ended = False

    def hear(self, token: int) -> str:
        """The text that a token completes; after the end-of-text token there is none."""
        self.ended = self.ended or token == self._tokenizer.end
        return "" if self.ended else self._decoder.decode(self._tokenizer.decode_bytes([token]))


def generate(model: Llama, tokenizer: Tokenizer, request: Request) -> Iterator[list[str]]:
    """New text of each sample, token by token, until all have ended, `max_new_tokens`, or the context is full.

    The prompt is opened by the end-of-text token, as documents are in training.
    """
    device = model.lm_head.weight.device
    ids = [tokenizer.end, *tokenizer.encode(request.prompt).tolist()]
    generator = torch.Generator(device).manual_seed(request.seed)
    voices = [Voice(tokenizer) for _ in range(request.samples)]
    tokens = decode(model, [ids] * request.samples, tokenizer.vocab_size, request.pick, generator)
    for _, picked in zip(range(request.max_new_tokens), tokens, strict=False):
        yield [voice.hear(token) for voice, token in zip(voices, picked.tolist(), strict=True)]
        if all(voice.ended for voice in voices):
            return

"""Text after text: prompts, a model, and what it goes on to say, as it says it."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch

from llamactl.model.decode import Picker, Step, decode
from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer

STREAMED = {"cpu": 1}  # steps that come at once: a GPU is asked for its ids every few steps only
STREAMED_ON_GPU = 8


@dataclass(frozen=True)
class Request:
    """What to go on from, how far, and how to pick. Text ends before any of the `stops`."""

    prompts: tuple[str, ...]
    max_new_tokens: int = 200
    samples: int = 1
    seed: int = 0
    stops: tuple[str, ...] = ()
    pick: Picker = field(default_factory=Picker)


@dataclass
class Said:
    """What one sample says: its text so far, what is new of it, and its tokens with their logarithms of probability."""

    prompt: str
    sample: int
    text: str = ""
    new: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: bool = False


class Voice:
    """The tokens of one sample turned to text as they come; half characters and the beginnings of stops wait."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        """Start with nothing said."""
        self._tokenizer, self._stops = tokenizer, stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._waiting = ""
        self.ended = False

    def hear(self, token: int) -> str:
        """The text that a token completes; there is none after the end-of-text token or a stop."""
        if self.ended or token == self._tokenizer.end:
            return "" if self.ended else self.finish()
        self._waiting += self._decoder.decode(self._tokenizer.decode_bytes([token]))
        found = [place for stop in self._stops if (place := self._waiting.find(stop)) >= 0]
        if found:
            self.ended = True
            return self._waiting[: min(found)]
        kept = max((_overlap(self._waiting, stop) for stop in self._stops), default=0)
        said, self._waiting = self._waiting[: len(self._waiting) - kept], self._waiting[len(self._waiting) - kept :]
        return said

    def finish(self) -> str:
        """What has waited for something that will not come."""
        self.ended = True
        return self._waiting + self._decoder.decode(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def generate(model: Llama, tokenizer: Tokenizer, request: Request) -> Iterator[list[Said]]:
    """What all samples of all prompts have said, after every few tokens, until all have ended or `max_new_tokens`.

    A prompt is opened by the end-of-text token, as documents are in training. All are one batch, with one cache.
    """
    device = model.model.embed_tokens.weight.device
    rows = [(prompt, number) for prompt in request.prompts for number in range(1, request.samples + 1)]
    ids = [[tokenizer.end, *tokenizer.encode(prompt).tolist()] for prompt, _ in rows]
    generator = torch.Generator(device).manual_seed(request.seed)
    voices = [Voice(tokenizer, request.stops) for _ in rows]
    said = [Said(prompt, number) for prompt, number in rows]
    steps = islice(decode(model, ids, tokenizer.vocab_size, request.pick, generator), request.max_new_tokens)
    at_once = STREAMED.get(device.type, STREAMED_ON_GPU)
    while some := list(islice(steps, at_once)):
        _hear(some, said, voices)
        yield said
        if all(each.ended for each in said):
            return
    for each, voice in zip(said, voices, strict=True):
        each.new = "" if each.ended else voice.finish()
        each.text, each.ended = each.text + each.new, True
    yield said


def _hear(steps: list[Step], said: list[Said], voices: list[Voice]) -> None:
    """Give each voice its tokens."""
    tokens = torch.stack([step.tokens for step in steps], dim=1).tolist()
    logs = torch.stack([step.log_probabilities for step in steps], dim=1).tolist()
    for each, voice, row, log_row in zip(said, voices, tokens, logs, strict=True):
        each.new = ""
        for token, log in zip(row, log_row, strict=True):
            if not voice.ended:
                each.new += voice.hear(token)
                each.tokens.append(token)
                each.log_probabilities.append(log)
        each.text, each.ended = each.text + each.new, voice.ended

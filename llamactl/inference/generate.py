"""Generate text: continue prompts with a model and stream the continuations."""

import codecs
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch

from llamactl.errors import DataError, UsageError
from llamactl.model.decode import Sampler, Step, decode_tokens, fit_prompt
from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import find_ends

STREAMED = {"cpu": 1}  # steps between updates of the text; ids are copied from a GPU only every few steps
STREAMED_ON_GPU = 8


@dataclass(frozen=True)
class Request:
    """Prompts, how many tokens and samples to generate, and how to sample. The text ends before the first of the `stops`."""

    prompts: tuple[str, ...]
    max_new_tokens: int = 200
    samples: int = 1
    seed: int = 0
    stops: tuple[str, ...] = ()
    pick: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        """Raise UsageError for a negative number of tokens, or an empty stop string, with which every text would be empty."""
        if self.max_new_tokens < 0:
            raise UsageError(f"{self.max_new_tokens} new tokens can't be generated.", "", "Example: 200")
        if "" in self.stops:
            raise UsageError(
                "A stop can't be empty.", "Every text would end before its first character.", 'Example: --stop "."'
            )


@dataclass
class Completion:
    """The state of one sample: its text so far, the part of it that is new, and its tokens with their log-probabilities.

    `with_end` is True when the sample is complete.
    """

    prompt: str
    sample: int
    text: str = ""
    new: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    with_end: bool = False


class TokenStream:
    """Convert the tokens of one sample to text as they arrive.

    Incomplete characters, and text that may be the beginning of a stop string, are held back.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        """Start an empty text."""
        self._tokenizer, self._stops = tokenizer, stops
        self.ends = find_ends(tokenizer)  # tokens after which nothing follows
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._waiting = ""
        self.with_end = False

    def push(self, token: int) -> str:
        """Return the text that a token completes; nothing follows the end of a text or of a turn, or a stop string."""
        if self.with_end or token in self.ends:
            return "" if self.with_end else self.finish()
        self._waiting += self._decoder.decode(self._tokenizer.decode_bytes([token]))
        found = [place for stop in self._stops if (place := self._waiting.find(stop)) >= 0]
        if found:
            self.with_end = True
            return self._waiting[: min(found)]
        kept = max((_overlap(self._waiting, stop) for stop in self._stops), default=0)
        said, self._waiting = self._waiting[: len(self._waiting) - kept], self._waiting[len(self._waiting) - kept :]
        return said

    def finish(self) -> str:
        """End the text and return the part that was held back."""
        self.with_end = True
        return self._waiting + self._decoder.decode(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of `text` that may be the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def generate_samples(model: Llama, tokenizer: Tokenizer, request: Request) -> Iterator[list[Completion]]:
    """Yield the state of all samples of all prompts every few tokens, until all have ended or have `max_new_tokens`.

    A prompt is preceded by the end-of-text token, as documents are in training. A sample depends only on its prompt, its number
    and the seed, except for rounding: a product of several rows may be summed in another order than that of one row. Prompts of
    equal length form a batch with a shared cache.
    """
    said = [Completion(prompt, number) for prompt in request.prompts for number in range(1, request.samples + 1)]
    ids = {prompt: tokenizer.encode_opening(prompt) for prompt in request.prompts}
    at_once = STREAMED.get(model.model.embed_tokens.weight.device.type, STREAMED_ON_GPU)
    batches: dict[int, list[Completion]] = {}
    for each in said:
        batches.setdefault(len(fit_prompt(ids[each.prompt], model.config.context)), []).append(each)
    for batch in batches.values():
        seeds = [sample_seed(request.seed, each.prompt, each.sample) for each in batch]
        steps = decode_tokens(model, [ids[each.prompt] for each in batch], tokenizer.vocab_size, request.pick, seeds)
        voices = [TokenStream(tokenizer, request.stops) for _ in batch]
        for _ in _listen(batch, voices, islice(steps, request.max_new_tokens), at_once):
            yield said
        for each in batch:
            each.new = ""


def sample_seed(seed: int, prompt: str, sample: int) -> int:
    """Return the seed of a sample: the first 64 bits of a sha256 of the seed, the sample's number and the prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sample} {prompt}".encode()).digest()[:8])


def _listen(batch: list[Completion], voices: list[TokenStream], steps: Iterator[Step], at_once: int) -> Iterator[None]:
    """Add tokens to the samples of a batch, `at_once` steps at a time, until all of them have ended."""
    while some := list(islice(steps, at_once)):
        _hear(some, batch, voices)
        yield
        if all(each.with_end for each in batch):
            return
    for each, voice in zip(batch, voices, strict=True):
        each.new = "" if each.with_end else voice.finish()
        each.text, each.with_end = each.text + each.new, True
    yield


def _hear(steps: list[Step], said: list[Completion], voices: list[TokenStream]) -> None:
    """Add the tokens of some steps to each sample; raises DataError where the logits are NaN."""
    tokens = torch.stack([step.tokens for step in steps], dim=1).tolist()
    logs = torch.stack([step.log_probabilities for step in steps], dim=1).tolist()
    if any(math.isnan(log) for log_row in logs for log in log_row):
        raise DataError("The model can't continue this text: its scores are not numbers.", "Its weights are too large.")
    for each, voice, row, log_row in zip(said, voices, tokens, logs, strict=True):
        each.new = ""
        for token, log in zip(row, log_row, strict=True):
            if not voice.with_end:
                each.new += voice.push(token)
                each.tokens.append(token)
                each.log_probabilities.append(log)
        each.text, each.with_end = each.text + each.new, voice.with_end

"""Generate for many requests at once: a thread gives each of them a token in turn, so that none waits for another's end."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread

import torch

from llamactl.checkpoint.io import load_model
from llamactl.inference.generate import TokenStream
from llamactl.inference.surprisal import spell_token
from llamactl.model.decode import Sampler, Step, decode_tokens
from llamactl.model.llama import Llama
from llamactl.serving.protocol import BadRequest, Delta, TokenDetail
from llamactl.tokenizer.bpe import Tokenizer

MOST_ACTIVE = 16  # requests that generate at once; each has a key/value cache of its own
MOST_WAITING = 256
MOST_LOADED = 3  # models in memory


@dataclass(frozen=True)
class Job:
    """A prompt to continue: ids, how, for how many choices (`seeds`), and where what is new of them goes.

    `deliver` gets deltas, then None at the end, or an exception. `first` numbers the choices.
    """

    folder: Path
    ids: list[int]
    max_tokens: int
    seeds: list[int]
    first: int
    pick: Sampler
    stops: tuple[str, ...]
    top: int | None
    echo: bool
    deliver: Callable[[Delta | Exception | None], None]
    cancelled: Event = field(default_factory=Event)


class Scheduler:
    """Owns the models and the thread that runs them."""

    def __init__(self, device: torch.device) -> None:
        """Start the thread, without a model."""
        self._device = device
        self._waiting: Queue[Job] = Queue(MOST_WAITING)
        self._models: OrderedDict[Path, tuple[Llama, Tokenizer]] = OrderedDict()
        self._closed, self._loading = Event(), Lock()
        self._thread = Thread(target=self._work, name="serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; raises BadRequest when too many wait."""
        try:
            self._waiting.put_nowait(job)
        except Full:
            raise BadRequest("Too many requests wait; try again in a moment.", status=503) from None

    def close(self) -> None:
        """End the thread, after the token that it is at."""
        self._closed.set()
        self._thread.join()

    def load(self, folder: Path) -> tuple[Llama, Tokenizer]:
        """Load a model, or return it from memory; the one that was used longest ago makes room."""
        with self._loading:
            if folder not in self._models:
                model, tokenizer, _ = load_model(folder, self._device)
                self._models[folder] = model, tokenizer
                if len(self._models) > MOST_LOADED:
                    self._models.popitem(last=False)
            self._models.move_to_end(folder)
            return self._models[folder]

    def _work(self) -> None:
        active: deque[tuple[Job, Iterator[list[Delta]]]] = deque()
        while not self._closed.is_set():
            self._admit(active)
            if not active:
                continue
            job, steps = active.popleft()
            try:
                deltas = None if job.cancelled.is_set() else next(steps, None)
            except Exception as error:  # one request's failure is not another's
                job.deliver(error)
                continue
            for delta in deltas or ():
                job.deliver(delta)
            if deltas is None:
                job.deliver(None)
            else:
                active.append((job, steps))

    def _admit(self, active: deque[tuple[Job, Iterator[list[Delta]]]]) -> None:
        """Move waiting jobs among the active ones, as far as there is room; wait a moment where there is none at all."""
        while len(active) < MOST_ACTIVE:
            try:
                job = self._waiting.get(block=not active, timeout=0.2)
            except Empty:
                return
            active.append((job, self._run(job)))

    @torch.inference_mode()
    def _run(self, job: Job) -> Iterator[list[Delta]]:
        """Yield what is new after each token of a job."""
        model, tokenizer = self.load(job.folder)
        if job.echo:
            yield echo_prompt(model, tokenizer, job)
        voices = [TokenStream(tokenizer, job.stops) for _ in job.seeds]
        steps = decode_tokens(model, [job.ids] * len(job.seeds), tokenizer.vocab_size, job.pick, job.seeds)
        for step in islice(steps, job.max_tokens):
            yield list(_hear(step, voices, tokenizer, job))
            if all(voice.with_end for voice in voices):
                return
        rest = [(number, voice) for number, voice in enumerate(voices) if not voice.with_end]
        yield [Delta(job.first + number, voice.finish(), finish="length") for number, voice in rest]


def _hear(step: Step, voices: list[TokenStream], tokenizer: Tokenizer, job: Job) -> Iterator[Delta]:
    """Yield what a step adds to each choice that has not ended; raises ValueError where the model has no scores."""
    logs = step.logits.float().log_softmax(-1)
    for number, (voice, token) in enumerate(zip(voices, step.tokens.tolist(), strict=True)):
        if voice.with_end:
            continue
        if math.isnan(logs[number, token].item()):
            raise ValueError("The model can't continue this text: its scores are not numbers.")
        text = voice.push(token)
        told = () if job.top is None or token == tokenizer.end else (_detail(tokenizer, token, logs[number], job.top),)
        yield Delta(job.first + number, text, told, "stop" if voice.with_end else "", 1)


def _detail(tokenizer: Tokenizer, token: int, logs: torch.Tensor, top: int) -> TokenDetail:
    best = logs.topk(min(top, len(logs)))
    names = [spell_token(tokenizer, int(i)) for i in best.indices.tolist()]
    return TokenDetail(spell_token(tokenizer, token), logs[token].item(), dict(zip(names, best.values.tolist(), strict=True)))


def echo_prompt(model: Llama, tokenizer: Tokenizer, job: Job) -> list[Delta]:
    """Return the prompt as the beginning of each choice, with the log-probabilities of its tokens if they are asked for."""
    opening = len(tokenizer.start)
    ids = job.ids[opening:] if tuple(job.ids[:opening]) == tokenizer.start else job.ids
    text = tokenizer.decode(ids)
    if job.top is None:
        return [Delta(job.first + number, text) for number in range(len(job.seeds))]
    scores = model(torch.tensor([job.ids], device=model.lm_head.weight.device))[0, :, : tokenizer.vocab_size]
    logs = scores.float().log_softmax(-1)
    before = len(job.ids) - len(ids)
    told = tuple(
        _detail(tokenizer, token, logs[before + place - 1], job.top)
        if before + place
        else TokenDetail(spell_token(tokenizer, token), None, {})
        for place, token in enumerate(ids)
    )
    return [Delta(job.first + number, text, told) for number in range(len(job.seeds))]

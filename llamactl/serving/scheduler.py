"""Generate for many requests at once: a thread gives each of them a token at a time, all of a model's as one batch."""

import codecs
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread

import torch

from llamactl.checkpoint.io import load_model
from llamactl.inference.generate import TokenStream
from llamactl.inference.surprisal import spell_token
from llamactl.model.continuous import Continuation, ContinuousBatch
from llamactl.model.decode import Sampler, Step
from llamactl.model.llama import Llama
from llamactl.planning.memory import free_device_memory
from llamactl.serving.answers import Delta, TokenDetail
from llamactl.serving.protocol import BadRequest
from llamactl.tokenizer.bpe import Tokenizer

MOST_ACTIVE = 64  # texts that are generated at once; each has a row of the key/value cache
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
    echo: int | None  # how many ids in front of the prompt are not repeated with it; None: it is not repeated
    deliver: Callable[[Delta | Exception | None], None]
    cancelled: Event = field(default_factory=Event)


class Choice:
    """One of the texts that a job asked for, on its way."""

    def __init__(self, job: Job, number: int, tokenizer: Tokenizer) -> None:
        """Start with nothing; `number` counts the job's choices."""
        self.job, self.number, self._tokenizer = job, number, tokenizer
        self._stream, self._left = TokenStream(tokenizer, job.stops), job.max_tokens
        self._offsets = Offsets(0 if job.echo is None else len(tokenizer.decode(job.ids[job.echo :])))
        self.ended = False

    def push(self, step: Step) -> None:
        """Deliver what a token adds; raises ValueError where the model has no scores."""
        job, token, logs = self.job, int(step.tokens), step.logits[0].float().log_softmax(-1)
        if math.isnan(logs[token].item()):
            raise ValueError("The model can't continue this text: its scores are not numbers.")
        text = self._stream.push(token)
        hidden = job.top is None or token in self._stream.ends
        told = () if hidden else (_detail(self._tokenizer, token, logs, job.top or 0, self._offsets),)
        self._left -= 1
        finish = "stop" if self._stream.with_end else "" if self._left else "length"
        if finish == "length":
            text += self._stream.finish()
        job.deliver(Delta(job.first + self.number, text, told, finish, 1))
        self.ended = bool(finish)


class Offsets:
    """Counts the characters before each token of a text; those of a character that is not complete yet do not count."""

    def __init__(self, start: int = 0) -> None:
        """Begin after so many characters."""
        self._decoder, self._place = codecs.getincrementaldecoder("utf-8")(errors="replace"), start

    def offset_before(self, content: bytes) -> int:
        """Return how many characters are before the next token, which has these bytes."""
        place = self._place
        self._place += len(self._decoder.decode(content))
        return place


class ModelQueue:
    """A model and the choices that it is generating, all together."""

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        """Start without any."""
        self._model, self._tokenizer = model, tokenizer
        self._batch = ContinuousBatch(model, tokenizer.vocab_size)
        self._active: dict[Continuation, Choice] = {}
        # A cache that grows is held twice for a moment, and others need memory as well.
        free = free_device_memory(model.lm_head.weight.device)
        self.most = max(1, min(MOST_ACTIVE, free // 4 // self._batch.row_bytes))

    def __len__(self) -> int:
        """Return the number of choices."""
        return len(self._active)

    @torch.inference_mode()
    def add(self, job: Job) -> None:
        """Begin with a job's choices."""
        if job.cancelled.is_set():
            job.deliver(None)
            return
        if job.echo is not None:
            for delta in echo_prompt(self._model, self._tokenizer, job):
                job.deliver(delta)
        if job.max_tokens == 0:  # only the prompt is asked for
            for number in range(len(job.seeds)):
                job.deliver(Delta(job.first + number, "", finish="length"))
            job.deliver(None)
            return
        for number, seed in enumerate(job.seeds):
            text = Continuation(job.ids, job.pick, seed, self._model)
            try:
                self._batch.add(text)
            except Exception as error:  # no memory for another row, say
                self._end(job, error)
                return
            self._active[text] = Choice(job, number, self._tokenizer)

    def step(self) -> None:
        """Give each choice a token; an error ends the job that it is of, or all jobs."""
        for text, choice in list(self._active.items()):
            if choice.job.cancelled.is_set():
                self._remove(text)
        try:
            for text, step in self._batch.step():
                if text in self._active:
                    self._push(text, step)
        except Exception as error:
            for job in {id(choice.job): choice.job for choice in self._active.values()}.values():
                self._end(job, error)

    def _push(self, text: Continuation, step: Step) -> None:
        choice = self._active[text]
        try:
            choice.push(step)
        except Exception as error:  # one request's failure is not another's
            self._end(choice.job, error)
        if choice.ended:
            self._remove(text)

    def _end(self, job: Job, error: Exception) -> None:
        for text, choice in list(self._active.items()):
            if choice.job is job:
                self._batch.remove(text)
                del self._active[text]
        job.deliver(error)

    def _remove(self, text: Continuation) -> None:
        """Leave a choice; the last one ends its job."""
        job = self._active.pop(text).job
        self._batch.remove(text)
        if all(choice.job is not job for choice in self._active.values()):
            job.deliver(None)


class Scheduler:
    """Owns the models and the thread that runs them."""

    def __init__(self, device: torch.device) -> None:
        """Start the thread, without a model."""
        self._device = device
        self._waiting: Queue[Job] = Queue(MOST_WAITING)
        self._next: Job | None = None  # taken from those that wait, but not begun
        self._models: OrderedDict[Path, tuple[Llama, Tokenizer]] = OrderedDict()
        self._queues: dict[Path, ModelQueue] = {}
        self._closed, self._loading = Event(), Lock()
        self._thread = Thread(target=self._work, name="serve", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of a request; raises BadRequest when too many wait, and then none of them is begun."""
        try:
            for job in jobs:
                self._waiting.put_nowait(job)
        except Full:
            for job in jobs:
                job.cancelled.set()
            raise BadRequest("Too many requests wait; try again in a moment.", status=503) from None

    @property
    def active_choices(self) -> int:
        """Return the number of choices that are being generated."""
        return sum(map(len, self._queues.values()))

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
        while not self._closed.is_set():
            self._admit()
            for queue in self._queues.values():
                if queue:
                    queue.step()

    def _admit(self) -> None:
        """Begin with the jobs that wait, as far as there is room; wait a moment where there is no other work at all."""
        while True:
            try:
                job = self._next or self._waiting.get(block=not self.active_choices, timeout=0.2)
            except Empty:
                return
            self._next = None
            try:
                queue = self._queue_of(job.folder)
                if queue and len(queue) + len(job.seeds) > queue.most:
                    self._next = job
                    return
                queue.add(job)
            except Exception as error:
                job.deliver(error)

    def _queue_of(self, folder: Path) -> ModelQueue:
        """Return the queue of a model; those of other models are kept while they have work."""
        if folder not in self._queues:
            self._queues = {path: queue for path, queue in self._queues.items() if queue}
            self._queues[folder] = ModelQueue(*self.load(folder))
        return self._queues[folder]


def _detail(tokenizer: Tokenizer, token: int, logs: torch.Tensor | None, top: int, offsets: Offsets) -> TokenDetail:
    """Describe a token of a text, and the `top` likeliest in its place; `logs` are None where nothing predicts it."""
    content = tokenizer.decode_bytes([token])
    name, offset = spell_token(tokenizer, token), offsets.offset_before(content)
    if logs is None:
        return TokenDetail(name, content, None, offset)
    best = logs.topk(min(top, len(logs)))
    others = tuple(
        TokenDetail(spell_token(tokenizer, other), tokenizer.decode_bytes([other]), log)
        for other, log in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )
    return TokenDetail(name, content, logs[token].item(), offset, others)


def echo_prompt(model: Llama, tokenizer: Tokenizer, job: Job) -> list[Delta]:
    """Return the prompt as the beginning of each choice, with the log-probabilities of its tokens if they are asked for."""
    text, told = tokenizer.decode(job.ids[job.echo :]), tuple[TokenDetail, ...]()
    if job.top is not None:
        scores = model(torch.tensor([job.ids], device=model.lm_head.weight.device))[0, :, : tokenizer.vocab_size]
        logs, offsets = [None, *scores.float().log_softmax(-1)], Offsets()
        predicted = zip(job.ids[job.echo :], logs[job.echo :], strict=False)  # the last scores are of the first new token
        told = tuple(_detail(tokenizer, token, log, job.top, offsets) for token, log in predicted)
    return [Delta(job.first + number, text, told) for number in range(len(job.seeds))]

"""The training loop: a generator of events that saves checkpoints and prints nothing."""

import math
import time
from collections.abc import Iterator
from itertools import islice, takewhile

import numpy as np
import torch
from torch import Tensor, nn

from llamactl import checkpoint
from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config
from llamactl.corpus.batches import Batch, Batches, Windows
from llamactl.errors import Diverged
from llamactl.model.decode import Picker, decode
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.training.events import Event, Resumed, Sampled, Saved, Skipped, Stepped, Validated
from llamactl.training.meter import peak_memory
from llamactl.training.optimizers import OPTIMIZERS, set_pace
from llamactl.training.origin import inherit
from llamactl.training.plan import flops_per_token
from llamactl.training.schedule import momentum, scale
from llamactl.training.world import World

MOST_SKIPPED = 8  # steps in a row without a finite gradient before the run gives up


def train(config: Config, dataset: Dataset, run: RunDir, world: World, rate: float) -> Iterator[Event]:
    """Train to the end of the budget, from the newest sound checkpoint, yielding what happens.

    `config` is resolved (`plan.resolve`); `rate` is the device's FLOP/s, for MFU. Stop by closing the generator.
    """
    trainer = Trainer(config, dataset, run, world, rate)
    yield from trainer.resume()
    while trainer.step < trainer.steps:
        yield trainer.advance()
        last = trainer.step == trainer.steps
        if last or trainer.step % config.train.eval_every == 0:
            yield from trainer.validate()
        if last or trainer.step % config.train.save_every == 0:
            yield trainer.save()


class Trainer:
    """A run in memory: the model, its optimizers, and where it stands."""

    def __init__(self, config: Config, dataset: Dataset, run: RunDir, world: World, rate: float) -> None:
        """Build everything at step 0."""
        self.config, self.dataset, self.run, self.world, self.rate = config, dataset, run, world, rate
        self.model = build_model(config, world)
        self.objective = NextToken(self.model)
        self.optimizers = OPTIMIZERS[config.optim.name](self.model, config.optim, world.precision.dtype)
        self.per_step = config.train.tokens_per_step // config.model.context
        key = f"{dataset.info.digest} {config.data.seed}"
        self.batches = Batches(Windows(dataset.train, config.model.context), self.per_step, key, world.rank, world.size)
        self.steps = -(-config.train.tokens // config.train.tokens_per_step)
        self.step = self.skipped = 0
        self.seconds = 0.0
        self.validation_loss: float | None = None

    @property
    def now(self) -> tuple[int, int, float, float]:
        """The fields of a Moment."""
        tokens = self.step * self.config.train.tokens_per_step
        return self.step, tokens, tokens * flops_per_token(self.config.model), self.seconds

    def resume(self) -> Iterator[Event]:
        """Go to the newest sound checkpoint, or start with the weights of another run's, where there is one."""
        path, damaged = checkpoint.newest(self.run)
        if path is None:
            inherit(self.config, self.dataset, self.model)
        else:
            state = checkpoint.restore(path, self.model, self.optimizers)
            self.step, self.seconds, self.validation_loss = state.step, state.seconds, state.validation_loss
        if path is not None or damaged:
            yield Resumed(*self.now, damaged)

    def advance(self) -> Stepped | Skipped:
        """One optimizer step; one that is not finite leaves the weights alone."""
        started = time.perf_counter()
        lr = self.config.optim.lr * scale(self.step, self.steps, self.config.schedule)
        set_pace(self.optimizers, lr, momentum(self.step, self.config.optim.momentum))
        micro_batches = self.batches.micro(self.step, self.config.train.micro_batch)
        loss = accumulate(self.objective, micro_batches, self.world).item()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip).item()
        finite = math.isfinite(loss) and math.isfinite(norm)
        for optimizer in self.optimizers:
            if finite:
                optimizer.step()
            optimizer.zero_grad()
        elapsed = time.perf_counter() - started
        self.step += 1
        self.seconds += elapsed
        if not finite:
            return self._skip(loss, norm)
        self.skipped = 0
        speed = self.config.train.tokens_per_step / elapsed
        mfu = speed * flops_per_token(self.config.model) / self.rate
        return Stepped(*self.now, loss, lr, norm, speed, mfu, peak_memory(self.world))

    def _skip(self, loss: float, norm: float) -> Skipped:
        self.skipped += 1
        if self.skipped == MOST_SKIPPED:
            what = f"Training diverged: {MOST_SKIPPED} steps up to step {self.step} had no finite gradient."
            why = f"The last loss was {loss}, the gradient's norm {norm}. Checkpoints before that are good."
            raise Diverged(what, why, f"Start again with a smaller rate: --set optim.lr={self.config.optim.lr / 2:.2g}")
        return Skipped(*self.now, loss, norm)

    def validate(self) -> Iterator[Validated | Sampled]:
        """The loss on the same held-out windows each time, then the same prompts with the same seed."""
        windows = Windows(self.dataset.val, self.config.model.context)
        if len(windows):
            measured = validate(self.objective, windows, self.dataset, self.config, self.world)
            self.validation_loss = measured[0]
            yield Validated(*self.now, *measured)
        for number, prompt in enumerate(self.config.train.prompts):
            text = sample(self.model, prompt, self.config.train.seed + number, self.dataset, self.config)
            yield Sampled(*self.now, prompt, text)

    def save(self) -> Saved:
        """Write a checkpoint, then drop those that are no longer kept."""
        path = self.run.checkpoint(self.step)
        step, tokens, _, seconds = self.now
        state = checkpoint.State(step=step, tokens=tokens, seconds=seconds, validation_loss=self.validation_loss)
        checkpoint.save(path, self.model, self.dataset.tokenizer, self.optimizers, state)
        checkpoint.prune(self.run, self.config.train.keep)
        return Saved(*self.now, str(path))


def build_model(config: Config, world: World) -> Llama:
    """A model with fp32 weights that its seed decides, whatever the device."""
    torch.manual_seed(config.train.seed)
    return Llama(config.model).to(world.device)


def accumulate(objective: NextToken, micro_batches: list[Batch], world: World) -> Tensor:
    """Add up the gradients of a step's micro-batches; the result is the loss over all of their windows."""
    windows = sum(len(batch.inputs) for batch in micro_batches)
    total = torch.zeros((), device=world.device)
    for inputs, targets in micro_batches:
        with world.precision.compute(world.device):
            loss = objective(inputs.to(world.device), targets.to(world.device)) * (len(inputs) / windows)
        loss.backward()
        total += loss.detach()
    return total


@torch.no_grad()
def validate(objective: NextToken, windows: Windows, dataset: Dataset, config: Config, world: World) -> tuple[float, float]:
    """Mean loss in nats a token, and bits a byte of text, over `eval_tokens` spread evenly over the held-out windows.

    Bits a byte do not depend on the tokenizer; the end-of-text token has no bytes, so it is left out of them.
    """
    number = max(1, min(len(windows), config.train.eval_tokens // config.model.context))
    numbers = np.linspace(0, len(windows) - 1, number).round().astype(np.int64)
    lengths = torch.from_numpy(dataset.tokenizer.byte_lengths)
    nats = text_nats = text_bytes = 0.0
    for start in range(0, number, config.train.micro_batch):
        inputs, targets = windows.batch(numbers[start : start + config.train.micro_batch])
        with world.precision.compute(world.device):
            losses = objective.per_token(inputs.to(world.device), targets.to(world.device)).cpu().double()
        nats += losses.sum().item()
        text_nats += losses[targets != dataset.tokenizer.end].sum().item()
        text_bytes += lengths[targets].sum().item()
    return nats / (number * windows.context), text_nats / math.log(2) / max(1.0, text_bytes)


def sample(model: Llama, prompt: str, seed: int, dataset: Dataset, config: Config) -> str:
    """A few tokens after a prompt, opened by the end-of-text token as documents are in training."""
    tokenizer, device = dataset.tokenizer, model.lm_head.weight.device
    tokens = torch.tensor([[tokenizer.end, *tokenizer.encode(prompt).tolist()]], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    decoding = (token.item() for token in decode(model, tokens, tokenizer.vocab_size, Picker(), generator))
    return tokenizer.decode(
        map(int, takewhile(lambda token: token != tokenizer.end, islice(decoding, config.train.sample_tokens)))
    )

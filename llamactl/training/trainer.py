"""The training loop: a generator of events that saves checkpoints and prints nothing."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from llamactl import checkpoint
from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config
from llamactl.corpus.batches import Batch, Batches, Windows
from llamactl.errors import Diverged
from llamactl.model.device import out_of_memory
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.training.ahead import Ahead
from llamactl.training.compilation import compile_blocks, eagerly
from llamactl.training.events import Event, Resumed, Sampled, Saved, Skipped, Slowed, Stepped, Validated
from llamactl.training.meter import peak_memory
from llamactl.training.optimizers import OPTIMIZERS, set_pace
from llamactl.training.origin import inherit
from llamactl.training.schedule import momentum, scale
from llamactl.training.sizing import flops_per_token
from llamactl.training.validation import sample, validate
from llamactl.training.world import World

MOST_SKIPPED = 8  # steps in a row without a finite gradient before the run gives up


def train(config: Config, dataset: Dataset, run: RunDir, world: World, rate: float) -> Iterator[Event]:
    """Train to the end of the budget, from the newest sound checkpoint, yielding what happens.

    `config` is resolved (`plan.resolve`); `rate` is the device's FLOP/s, for MFU. Stop by closing the generator.
    """
    trainer = Trainer(config, dataset, run, world, rate)
    yield from trainer.resume()
    yield from trainer.compile()
    while trainer.step < trainer.steps:
        event = trainer.advance()
        yield event
        if isinstance(event, Slowed):
            continue  # the step is still to be done
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
        self.model.model.recompute = config.train.recompute == "on"
        self.objective = NextToken(self.model)
        self.optimizers = OPTIMIZERS[config.optim.name](self.model, config.optim, world.precision.dtype)
        self.per_step = config.train.tokens_per_step // config.model.context
        key = f"{dataset.info.digest} {config.data.seed}"
        self.batches = Batches(Windows(dataset.train, config.model.context), self.per_step, key, world.rank, world.size)
        self.micro_batch = config.train.micro_batch
        self.ahead = Ahead(self._micro_batches)
        # fp16's smallest numbers are too large for gradients, which are scaled up; the other formats need none of it.
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=2.0**12, enabled=world.precision.name == "fp16")
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
            self.micro_batch = min(self.micro_batch, state.micro_batch or self.micro_batch)
            if state.scaler:
                self.scaler.load_state_dict(dict(state.scaler))
        if path is not None or damaged:
            yield Resumed(*self.now, damaged)

    def compile(self) -> Iterator[Slowed]:
        """Compile the blocks if the config says so, or say why that can't be done here."""
        reason = compile_blocks(self.model) if self.config.train.compile == "on" else ""
        if reason:
            yield Slowed(*self.now, f"without torch.compile: {reason}")

    def advance(self) -> Stepped | Skipped | Slowed:
        """One optimizer step; one that is not finite leaves the weights alone, and a full memory leaves it undone."""
        started = time.perf_counter()
        total = self.gradients(self.ahead(self.step))
        if isinstance(total, Slowed):
            return total
        loss, norm = self.update(total)
        elapsed = time.perf_counter() - started
        lr = self._lr
        self.step += 1
        self.seconds += elapsed
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._skip(loss, norm)
        self.skipped = 0
        speed = self.config.train.tokens_per_step / elapsed
        mfu = speed * flops_per_token(self.config.model) / self.rate
        return Stepped(*self.now, loss, lr, norm, speed, mfu, peak_memory(self.world))

    def gradients(self, micro_batches: list[Batch]) -> Tensor | Slowed:
        """The loss of a step's windows, and its gradients; a full memory halves the micro-batch, not the step."""
        try:
            return accumulate(self.objective, micro_batches, self.world, self.scaler)
        except RuntimeError as error:
            if self.micro_batch == 1 or not out_of_memory(error):
                raise
        # Outside the except block, whose error holds on to what filled the memory.
        self.model.zero_grad()
        torch.cuda.empty_cache()
        self.micro_batch = -(-self.micro_batch // 2)
        self.ahead = Ahead(self._micro_batches)
        return Slowed(*self.now, f"the memory is full: {self.micro_batch} windows at once from here on")

    def update(self, total: Tensor) -> tuple[float, float]:
        """Move the weights, unless the loss or the gradient's norm is not finite; both are the answer.

        The device is asked for numbers here, once a step: until then it has always more to do.
        """
        set_pace(self.optimizers, self._lr, momentum(self.step, self.config.optim.momentum))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        loss, size = torch.stack([total, norm]).tolist()
        for optimizer in self.optimizers if math.isfinite(loss) and math.isfinite(size) else []:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad()
        return loss, size

    @property
    def _lr(self) -> float:
        return self.config.optim.lr * scale(self.step, self.steps, self.config.schedule)

    def _micro_batches(self, step: int) -> list[Batch]:
        """A step's share of windows on the device, in micro-batches."""
        batches = self.batches.micro(step, self.micro_batch)
        if self.world.device.type == "cuda":
            batches = [Batch(*(part.pin_memory() for part in batch)) for batch in batches]
        return [Batch(*(part.to(self.world.device, non_blocking=True) for part in batch)) for batch in batches]

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
            with eagerly():
                measured = validate(self.objective, windows, self.dataset, self.config, self.world)
            self.validation_loss = measured[0]
            yield Validated(*self.now, *measured)
        for number, prompt in enumerate(self.config.train.prompts):
            with eagerly():
                text = sample(self.model, prompt, self.config.train.seed + number, self.dataset, self.config)
            yield Sampled(*self.now, prompt, text)

    def save(self) -> Saved:
        """Write a checkpoint, then drop those that are no longer kept."""
        path = self.run.checkpoint(self.step)
        step, tokens, _, seconds = self.now
        state = checkpoint.State(
            step=step,
            tokens=tokens,
            seconds=seconds,
            validation_loss=self.validation_loss,
            micro_batch=self.micro_batch,
            scaler=self.scaler.state_dict(),
        )
        checkpoint.save(path, self.model, self.dataset.tokenizer, self.optimizers, state)
        checkpoint.prune(self.run, self.config.train.keep)
        return Saved(*self.now, str(path))


def build_model(config: Config, world: World) -> Llama:
    """A model with fp32 weights that its seed decides, whatever the device."""
    torch.manual_seed(config.train.seed)
    return Llama(config.model).to(world.device)


def accumulate(objective: NextToken, micro_batches: list[Batch], world: World, scaler: torch.amp.GradScaler) -> Tensor:
    """Add up the gradients of a step's micro-batches; the result is the loss over all of their windows."""
    windows = sum(len(batch.inputs) for batch in micro_batches)
    total = torch.zeros((), device=world.device)
    for inputs, targets in micro_batches:
        with world.precision.compute(world.device):
            loss = objective(inputs, targets) * (len(inputs) / windows)
        scaler.scale(loss).backward()
        total += loss.detach()
    return total

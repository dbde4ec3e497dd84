"""The training loop: a generator of events that saves checkpoints and prints nothing."""

import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from llamactl import checkpoint, durable
from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config
from llamactl.corpus.batches import Batch, Batches, Windows
from llamactl.errors import Diverged, NoRoom
from llamactl.model.device import out_of_memory
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.tensors import put, whole
from llamactl.training.ahead import Ahead
from llamactl.training.compilation import compile_blocks, eagerly
from llamactl.training.environment import computed_on, differences, same_data
from llamactl.training.events import (
    Event,
    Resumed,
    RolledBack,
    Sampled,
    Saved,
    Skipped,
    Slowed,
    Stepped,
    Stopped,
    Validated,
)
from llamactl.training.meter import peak_memory
from llamactl.training.optimizers import OPTIMIZERS, set_pace
from llamactl.training.origin import inherit
from llamactl.training.parallel import accumulating, deal, gathered, replicated, shard
from llamactl.training.saver import Saver
from llamactl.training.schedule import momentum, scale
from llamactl.training.sizing import flops_per_token
from llamactl.training.validation import sample, validate
from llamactl.training.wishes import Wishes
from llamactl.training.world import World, led

MOST_SKIPPED = 8  # steps in a row without a finite gradient before the run goes back to a checkpoint
MOST_ROLLBACKS = 2
SHOWN = 3  # steps that are shown when it gives up


def train(
    config: Config, dataset: Dataset, run: RunDir, world: World, rate: float, wishes: Wishes | None = None
) -> Generator[Event, None, None]:
    """Train to the end of the budget, from the newest sound checkpoint, yielding what happens.

    `config` is resolved (`plan.resolve`); `rate` is the device's FLOP/s, for MFU. Stop by a wish, which saves, or by closing
    the generator, which does not. The caller holds the run's lock.
    """
    wishes, signal = wishes or Wishes(), 0
    with closing(Trainer(config, dataset, run, world, rate)) as trainer:
        yield from trainer.resume()
        yield from trainer.compile()
        while trainer.step < trainer.steps and not (signal := world.most(wishes.stop)[0]):
            event = trainer.advance()
            yield event
            yield from trainer.landed()
            if isinstance(event, Slowed):
                continue  # the step is still to be done
            if trainer.skipped == MOST_SKIPPED:
                yield from trainer.roll_back()
                continue
            if trainer.is_due(config.train.eval_every):
                yield from trainer.validate()
            if trainer.is_due(config.train.save_every) or trainer.owes_save or any(world.most(wishes.save)):
                wishes.save = False
                yield from trainer.save()
        stopped = trainer.step < trainer.steps
        if stopped and trainer.step != trainer.saved_step:
            yield from trainer.save(anyway=True)
        yield from trainer.landed(wait=True)
        world.most(0)  # nobody leaves before the checkpoint is on the disk: torchrun would end who writes it
        if stopped:
            yield Stopped(*trainer.now, signal)


class Trainer:
    """A run in memory: the model, its optimizers, and where it stands."""

    def __init__(self, config: Config, dataset: Dataset, run: RunDir, world: World, rate: float) -> None:
        """Build everything at step 0."""
        self.config, self.dataset, self.run, self.world, self.rate = config, dataset, run, world, rate
        self.objective = build_objective(config, world)
        self.model = self.objective.model
        self.model.model.recompute = config.train.recompute == "on"
        self.forward = replicated(self.objective, world)
        self.optimizers = OPTIMIZERS[config.optim.name](self.model, config.optim, world.precision.dtype, deal(world))
        self.per_step = config.train.tokens_per_step // config.model.context
        key = f"{dataset.info.digest} {config.data.seed}"
        self.batches = Batches(Windows(dataset.train, config.model.context), self.per_step, key, world.rank, world.size)
        self.micro_batch = config.train.micro_batch
        self.ahead = Ahead(self._micro_batches)
        # fp16's smallest numbers are too large for gradients, which are scaled up; the other formats need none of it.
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=2.0**12, enabled=world.precision.name == "fp16")
        self.saver = Saver(run, config, dataset.tokenizer, world.leads)
        self.environment = computed_on(config, dataset, world)
        self.steps = -(-config.train.tokens // config.train.tokens_per_step)
        self.step = self.skipped = self.rollbacks = self.jumped = 0
        self.saved_step, self.owes_save = 0, False
        self.latest: deque[str] = deque(maxlen=SHOWN)
        self.seconds = 0.0
        self.validation_loss: float | None = None

    @property
    def now(self) -> tuple[int, int, float, float]:
        """The fields of a Moment."""
        tokens = self.step * self.config.train.tokens_per_step
        return self.step, tokens, tokens * flops_per_token(self.config.model), self.seconds

    def resume(self) -> Iterator[Event]:
        """Go to the newest sound checkpoint, or start with the weights of another run's, where there is one."""
        path, damaged = led(self._newest)
        if path is None:
            inherit(self.config, self.dataset, self.model)
            if damaged:
                yield Resumed(*self.now, damaged)
            return
        state = self._restore(path)
        self.rollbacks, self.jumped = state.rollbacks, state.jumped
        yield Resumed(*self.now, damaged, differences(state.environment, self.environment))

    def _newest(self) -> tuple[Path | None, tuple[str, ...]]:
        durable.sweep(self.run.checkpoints)
        return checkpoint.newest(self.run)

    def _restore(self, path: Path) -> checkpoint.State:
        state = checkpoint.restore(path, self.model, self.optimizers, trusted=True)
        same_data(state.environment, self.environment)
        self.step, self.seconds, self.validation_loss = state.step, state.seconds, state.validation_loss
        self.skipped, self.saved_step = state.skipped, state.step
        self.micro_batch = min(self.micro_batch, state.micro_batch or self.micro_batch)
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))
        return state

    def roll_back(self) -> Iterator[Saved | RolledBack]:
        """Go back to the newest checkpoint, or to the start, and leave out the data from there to here; raises Diverged."""
        yield from self.landed(wait=True)
        failed, position = self.step, self.step + self.jumped
        if self.rollbacks == MOST_ROLLBACKS:
            what = f"Training diverged at step {failed}, after {MOST_ROLLBACKS} times back to a checkpoint."
            fix = f"Start again with a smaller rate: --set optim.lr={self.config.optim.lr / 2:.2g}"
            raise Diverged(what, f"The last rows: {'; '.join(self.latest)}. Earlier checkpoints are good.", fix)
        path, _ = led(self._newest)
        if path is None:
            self._begin_again()
        else:
            self._restore(path)
        self.skipped, self.owes_save = 0, False
        self.rollbacks += 1
        self.jumped = position - self.step
        yield RolledBack(*self.now, failed)

    def _begin_again(self) -> None:
        """As at step 0, in the model that is there, which may be compiled."""
        initialise(self.model, self.config.train.seed)
        inherit(self.config, self.dataset, self.model)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.step, self.saved_step, self.seconds, self.validation_loss = 0, 0, 0.0, None

    def is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, and at the last one, happens now."""
        return self.step == self.steps or self.step % every == 0

    def compile(self) -> Iterator[Slowed]:
        """Compile the blocks if the config says so, or say why that can't be done here."""
        reason = compile_blocks(self.model) if self.config.train.compile == "on" else ""
        if reason:
            yield Slowed(*self.now, f"without torch.compile: {reason}")

    def advance(self) -> Stepped | Skipped | Slowed:
        """One optimizer step; one that is not finite leaves the weights alone, and a full memory leaves it undone."""
        started = time.perf_counter()
        total = self.gradients(self.ahead(self.step + self.jumped))
        if isinstance(total, Slowed):
            return total
        loss, norm = self.update(total)
        elapsed = time.perf_counter() - started
        lr = self._lr
        self.step += 1
        self.seconds += elapsed
        self.latest.append(f"step {self.step} loss {loss:.4g}, gradient norm {norm:.3g}")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            return Skipped(*self.now, loss, norm)
        self.skipped = 0
        speed = self.config.train.tokens_per_step / elapsed
        mfu = speed * flops_per_token(self.config.model) / (self.rate * self.world.size)
        return Stepped(*self.now, loss, lr, norm, speed, mfu, peak_memory(self.world))

    def gradients(self, micro_batches: list[Batch]) -> Tensor | Slowed:
        """The loss of a step's windows, and its gradients; a full memory halves the micro-batch, not the step."""
        try:
            return accumulate(self.forward, micro_batches, self.world, self.scaler)
        except RuntimeError as error:
            if self.micro_batch == 1 or not out_of_memory(error):
                raise
            if self.world.size > 1:  # the others are in the midst of it
                fix = f"Add --set train.micro_batch={-(-self.micro_batch // 2)}"
                raise NoRoom(f"The memory of {self.world.device} is full.", "", fix) from error
        # Outside the except block, whose error holds on to what filled the memory.
        self._forget_gradients()
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
        loss, size = torch.stack([total, whole(norm)]).tolist()
        for optimizer in self.optimizers if math.isfinite(loss) and math.isfinite(size) else []:
            self.scaler.step(optimizer)
        self.scaler.update()
        self._forget_gradients()
        return loss, size

    def _forget_gradients(self) -> None:
        """DDP's gradients are views of what it sends, and stay: new ones would stand beside those."""
        self.model.zero_grad(set_to_none=self.world.parallel != "ddp")

    @property
    def _lr(self) -> float:
        return self.config.optim.lr * scale(self.step, self.steps, self.config.schedule)

    def _micro_batches(self, step: int) -> list[Batch]:
        """A step's share of windows on the device, in micro-batches."""
        return [
            batch._replace(inputs=self._moved(batch.inputs), targets=self._moved(batch.targets))
            for batch in self.batches.micro(step, self.micro_batch)
        ]

    def _moved(self, tokens: Tensor) -> Tensor:
        pinned = tokens.pin_memory() if self.world.device.type == "cuda" else tokens
        return pinned.to(self.world.device, non_blocking=True)

    def validate(self) -> Iterator[Validated | Sampled]:
        """The loss on the same held-out windows each time, then the same prompts with the same seed."""
        windows = Windows(self.dataset.val, self.config.model.context)
        if len(windows):
            with eagerly():
                measured = validate(self.objective, windows, self.dataset, self.config, self.world)
            self.validation_loss = measured[0]
            yield Validated(*self.now, *measured)
        takes_part = self.world.leads or self.world.shards > 1  # whoever holds a part of the model
        for number, prompt in enumerate(self.config.train.prompts if takes_part else ()):
            with eagerly(), gathered(self.objective, self.world):
                text = sample(self.model, prompt, self.config.train.seed + number, self.dataset, self.config)
            yield Sampled(*self.now, prompt, text)

    def save(self, anyway: bool = False) -> Iterator[Saved | RolledBack]:
        """Start to write a checkpoint; weights that are no numbers are not saved, but lead back to some that are.

        In the middle of steps that had no finite gradient it waits for one that has, unless it is wanted `anyway`.
        """
        self.owes_save = bool(self.skipped) and not anyway and self.step < self.steps
        if self.owes_save:
            return
        yield from self.landed(wait=True)
        taken = checkpoint.snapshot(self.model, self.optimizers)
        if any(self.world.most(not taken.finite())):
            yield from self.roll_back()
            return
        step, tokens, _, seconds = self.now
        state = checkpoint.State(
            step=step,
            tokens=tokens,
            seconds=seconds,
            validation_loss=self.validation_loss,
            micro_batch=self.micro_batch,
            scaler=self.scaler.state_dict(),
            skipped=self.skipped,
            rollbacks=self.rollbacks,
            jumped=self.jumped,
            environment=self.environment,
        )
        self.saver.save(taken, state)
        self.saved_step = self.step

    def landed(self, wait: bool = False) -> Iterator[Saved]:
        """Whether a checkpoint has reached the disk; raises what kept it from there."""
        state = self.saver.landed(wait)
        if state:
            flops = state.tokens * flops_per_token(self.config.model)
            yield Saved(state.step, state.tokens, flops, state.seconds, str(self.run.checkpoint(state.step)))

    def close(self) -> None:
        """Wait for what is being written, and let the threads go."""
        self.saver.close()
        self.ahead.close()


def build_objective(config: Config, world: World) -> NextToken:
    """A model and its loss, with fp32 weights that its seed decides, whatever the device and however many share it."""
    with torch.device("meta"):
        objective = NextToken(Llama(config.model))
    if world.shards > 1:
        shard(objective, world)
    objective.to_empty(device=world.device)
    objective.model.tie()
    initialise(objective.model, config.train.seed)
    return objective


def initialise(model: Llama, seed: int) -> None:
    """Put a seed's weights into place, whole ones one at a time."""
    torch.manual_seed(seed)
    for parameter, weights in model.initial_weights():
        put(parameter, weights)


def accumulate(forward: nn.Module, micro_batches: list[Batch], world: World, scaler: torch.amp.GradScaler) -> Tensor:
    """Add up the gradients of a step's micro-batches; the result is the loss over all windows of all processes."""
    total = torch.zeros((), device=world.device)
    for number, (inputs, targets, share) in enumerate(micro_batches, start=1):
        with accumulating(forward, last=number == len(micro_batches)):
            with world.precision.compute(world.device):
                loss = forward(inputs, targets) * share
            # What processes add up is divided by their number.
            scaler.scale(loss * world.size).backward()
        total += loss.detach()
    return world.sum(total)

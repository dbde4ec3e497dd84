"""The training loop. Iterate a Trainer to train; it yields events, prints nothing and knows none of their consumers."""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config
from llamactl.corpus.batches import Batch
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World, broadcast_from_rank0
from llamactl.distributed.parallelize import wrap_ddp
from llamactl.hardware.memory import peak_memory, release_cached_memory
from llamactl.optim.build import OPTIMIZERS, set_lr_and_momentum
from llamactl.optim.distributed_muon import build_muon_exchange
from llamactl.optim.schedule import lr_multiplier, muon_momentum
from llamactl.planning.flops import flops_per_token
from llamactl.runs.run_dir import RunDir
from llamactl.training import events
from llamactl.training.async_checkpoint import AsyncCheckpointer
from llamactl.training.build import build_batches, build_objective, init_weights
from llamactl.training.compile import CompileGuard, compile_objective
from llamactl.training.dropout import load_micro_batches
from llamactl.training.gradients import accumulate_gradients, check_repeatable, clip_gradients, update_weights, zero_gradients
from llamactl.training.graphs import GraphedGradients, graph_gradients
from llamactl.training.init_from import load_init_weights
from llamactl.training.prefetch import Prefetcher
from llamactl.training.provenance import check_same_data, environment_differences, numeric_environment
from llamactl.training.resumption import check_changed_settings
from llamactl.training.save_clock import SaveClock
from llamactl.training.signals import StopRequests
from llamactl.training.state import NonFiniteGuard, TrainState
from llamactl.training.teachers import load_teachers
from llamactl.training.validation import sample_prompts, validate_model


def train_run(
    config: Config, dataset: Dataset, run: RunDir, world: World, rate: float, requests: StopRequests | None = None
) -> Generator[events.Event, None, None]:
    """Train from the newest valid checkpoint to the end of the token budget; yield the events.

    `config` must be resolved (`planning.resolve`); `rate` is the device's peak FLOP/s, for MFU. `requests.stop` saves and
    stops; closing the generator stops without saving. The caller holds the run's lock.
    """
    with closing(Trainer(config, dataset, run, world, rate, requests)) as trainer:
        yield from trainer


class Trainer:
    """One training run: the model, its optimizers, its data and its progress. Iterate it for events."""

    def __init__(
        self, config: Config, dataset: Dataset, run: RunDir, world: World, rate: float, requests: StopRequests | None = None
    ) -> None:
        """Build the model, the optimizers and the data stream at step 0."""
        # First, as it opens the run's folder: if that is moved while the rest is built, the next save notices.
        self.checkpointer = AsyncCheckpointer(run, config, dataset.tokenizer, world.is_main)
        self.config, self.dataset, self.run, self.world, self.rate = config, dataset, run, world, rate
        self.requests = requests or StopRequests()
        self.objective = build_objective(config, world)
        self.objective.teachers = load_teachers(config, world)
        self.model = self.objective.model
        self.forward = wrap_ddp(self.objective, world)
        self.graph: GraphedGradients | None = None
        build_optimizers = OPTIMIZERS[config.optim.name]
        self.optimizers = build_optimizers(self.model, config.optim, world.precision.dtype, build_muon_exchange(world))
        self.batches = build_batches(dataset, config, world)
        self.prefetch = Prefetcher(self._load_micro_batches)
        # Small gradients underflow in fp16, so the loss is scaled up; bf16 and fp32 have the range without it.
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=2.0**12, enabled=world.precision.name == "fp16")
        self.clock = SaveClock(config.train.save_minutes)
        # Why blocks that are to be compiled are not; before the environment, which says what computes the steps.
        self.uncompiled = compile_objective(self.objective) if config.train.compile != "off" else ""
        self.environment = numeric_environment(config, dataset, world) | ({"compile": "off"} if self.uncompiled else {})
        self.guard_compile = CompileGuard(config.train.compile != "off" and not self.uncompiled)
        self.max_steps = -(-config.train.tokens // config.train.tokens_per_step)  # the last step may exceed the budget
        self.state, self.guard = TrainState(config.train.micro_batch), NonFiniteGuard()
        self.saved_step, self.save_deferred = 0, False

    def __iter__(self) -> Iterator[events.Event]:
        """Train to the end of the token budget, or until a stop is requested."""
        yield from self.load_checkpoint()
        yield from self.compile()
        self.clock.restart()
        stop_signal = 0
        # The maximum over all ranks: signals reach them at different times, but all must leave the loop at the same step.
        while not self.is_over and not (stop_signal := self.world.all_reduce_max(self.requests.stop)[0]):
            yield from self.train_step()
            yield from self.poll()
            if self.guard.must_roll_back(self.state):
                yield from self.roll_back()
                continue  # back at an earlier step: its validation and its checkpoint are done
            if self.is_due(self.config.train.eval_every):
                yield from self.validate()
            if self.must_save():
                yield from self.save_checkpoint()
        yield from self.finish(stop_signal)

    @property
    def progress(self) -> tuple[int, int, float, float]:
        """Return the fields of a `Progress`: steps, tokens, model FLOPs and seconds of training so far."""
        tokens = self.state.step * self.config.train.tokens_per_step
        return self.state.step, tokens, tokens * flops_per_token(self.config.model), self.state.seconds

    @property
    def is_over(self) -> bool:
        """Check whether the budget is used up, or the patience with a validation loss that does not fall."""
        patience = self.config.train.patience
        return self.state.step == self.max_steps or 0 < patience <= self.state.validations_since

    def is_due(self, every: int) -> bool:
        """Check whether the current step is a multiple of `every`, or the last one."""
        return self.is_over or self.state.step % every == 0

    def load_checkpoint(self) -> Iterator[events.Event]:
        """Load the newest valid checkpoint, else the weights of `init_from`, else keep those drawn from the seed."""
        path, damaged = broadcast_from_rank0(self.checkpointer.newest)
        if path is None:
            load_init_weights(self.config, self.dataset, self.model)
            if damaged:
                yield events.Resumed(*self.progress, damaged)
            return
        saved = self._restore(path, rollback=False)
        changed = check_changed_settings(saved.config, self.config)
        yield events.Resumed(*self.progress, damaged, environment_differences(saved.environment, self.environment), changed)

    def _restore(self, path: Path, rollback: bool) -> State:
        """Load weights, optimizers and progress; raises DataError for other data or a damaged file."""
        # Trusted: `checkpointer.newest` has just verified the hashes of all its files.
        saved = checkpoint_io.restore_checkpoint(path, self.model, self.optimizers, trusted=True)
        check_same_data(saved.environment, self.environment)
        self.state.load_checkpoint(saved, rollback)
        self.saved_step = saved.step
        if saved.scaler:
            self.scaler.load_state_dict(dict(saved.scaler))
        return saved

    def roll_back(self) -> Iterator[events.Saved | events.RolledBack]:
        """Return to the newest checkpoint, else to step 0, and skip the data since; raises Diverged after too many times."""
        yield from self.poll(wait=True)
        failed_step, position = self.state.step, self.state.batch
        self.guard.check_rollbacks(self.state, self.config.optim.lr)
        path, _ = broadcast_from_rank0(self.checkpointer.newest)
        if path is None:
            self._restart()
        else:
            self._restore(path, rollback=True)
        self.state.nonfinite_steps, self.save_deferred = 0, False
        self.state.rollbacks += 1
        # The data moves, not the seed: batches stay a function of step + data_offset, so a resumed run sees the same ones.
        self.state.data_offset = position - self.state.step
        yield events.RolledBack(*self.progress, failed_step)

    def _restart(self) -> None:
        """Return to step 0 in place, as the model may be compiled already."""
        init_weights(self.model, self.config.train.seed)
        load_init_weights(self.config, self.dataset, self.model)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.state = TrainState(self.state.micro_batch, rollbacks=self.state.rollbacks)
        self.saved_step = 0

    def compile(self) -> Iterator[events.Degraded]:
        """Capture a CUDA graph if the config asks for one; yield `Degraded` for what this machine can't compile or capture."""
        if self.uncompiled:
            yield events.Degraded(*self.progress, f"without torch.compile: {self.uncompiled}")
        if self.config.train.compile == "graphs" and not self.is_over:
            self.graph, reason = graph_gradients(self.forward, self.prefetch(self.state.batch), self.world, self.scaler)
            if reason:
                yield events.Degraded(*self.progress, f"without CUDA graphs: {reason}")

    def train_step(self) -> Iterator[events.Stepped | events.Skipped | events.Degraded]:
        """Run one optimizer step. Skip the update if it is not finite; out of memory, halve the micro-batch and retry."""
        started = time.perf_counter()
        while (loss_sum := self.forward_backward(self.prefetch(self.state.batch))) is None:
            yield self._halve_micro_batch()
            started = time.perf_counter()
        loss, norm = self.optimizer_step(loss_sum)
        # The schedule follows state.step, so the learning rate of this step is read before it advances.
        elapsed, lr = time.perf_counter() - started, self._lr
        self.state.step += 1
        self.state.seconds += elapsed
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        self.guard.observe(self.state, loss, norm, is_finite)
        if not is_finite:
            yield events.Skipped(*self.progress, loss, norm)
            return
        speed = self.config.train.tokens_per_step / elapsed
        mfu = speed * flops_per_token(self.config.model) / (self.rate * self.world.size)
        yield events.Stepped(*self.progress, loss, lr, norm, speed, mfu, peak_memory(self.world.device))

    def forward_backward(self, micro_batches: list[Batch]) -> Tensor | None:
        """Accumulate a step's gradients; return its mean loss, a scalar tensor, or None if out of memory."""
        try:
            with self.guard_compile(self.state.micro_batch):
                return accumulate_gradients(self.forward, micro_batches, self.world, self.scaler, self.graph)
        except RuntimeError as error:
            check_repeatable(error, self.world, self.state.micro_batch)
        return None

    def _halve_micro_batch(self) -> events.Degraded:
        """Free the failed step's memory, which the traceback references in the except block, and halve the micro-batch."""
        self.graph = None  # of the larger one
        self._zero_grad()
        release_cached_memory(self.world.device)
        torch.compiler.reset()  # code is kept for a few shapes only, after which blocks would run eagerly
        self.state.micro_batch = -(-self.state.micro_batch // 2)
        self.prefetch = Prefetcher(self._load_micro_batches)
        return events.Degraded(*self.progress, f"out of memory: micro-batch {self.state.micro_batch} from here on")

    def optimizer_step(self, loss_sum: Tensor) -> tuple[float, float]:
        """Clip the gradients and update the weights, unless loss or norm is not finite; return loss and gradient norm."""
        set_lr_and_momentum(self.optimizers, self._lr, muon_momentum(self.state.step, self.config.optim.momentum))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        total_norm = clip_gradients(self.model.parameters(), self.config.optim.max_grad_norm)
        # Both numbers in one transfer: it waits for the device, which until here has a queue of work and never idles.
        loss, norm = torch.stack([loss_sum, total_norm]).tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            update_weights(self.optimizers, self.scaler, self.world.device)
        self.scaler.update()
        self._zero_grad()
        return loss, norm

    def _zero_grad(self) -> None:
        # DDP's gradients are views of its buckets, and a graph adds to those it was captured with: they stay allocated.
        zero_gradients(self.model, keep=self.world.parallel == "ddp" or self.graph is not None)

    @property
    def _lr(self) -> float:
        return self.config.optim.lr * lr_multiplier(self.state.step, self.max_steps, self.config.schedule)

    def _load_micro_batches(self, step: int) -> list[Batch]:
        """Load this rank's windows of a step onto the device, in micro-batches. Runs in the prefetch thread."""
        return load_micro_batches(self.batches, self.config, self.world.device, step, self.state.micro_batch)

    def validate(self) -> Iterator[events.Validated | events.Sampled]:
        """Measure the loss on the same held-out windows each time, then sample the same prompts with the same seeds."""
        if measured := validate_model(self.objective, self.dataset, self.config, self.world):
            self.state.take_validation(measured.loss, self.config.train.patience)
            yield events.Validated(*self.progress, *measured)
        for prompt, text in sample_prompts(self.objective, self.dataset, self.config, self.world):
            yield events.Sampled(*self.progress, prompt, text)

    def must_save(self) -> bool:
        """Check whether a checkpoint is due by steps, by time or by request, or was deferred; all ranks agree."""
        requested = any(self.world.all_reduce_max(self.requests.save or self.clock.is_due()))
        self.requests.save = self.requests.save and not requested
        best = self.state.is_best and self.is_due(self.config.train.eval_every)
        return requested or self.save_deferred or best or self.is_due(self.config.train.save_every)

    def save_checkpoint(self, anyway: bool = False) -> Iterator[events.Saved | events.RolledBack]:
        """Start an asynchronous checkpoint. If any weight is not finite, roll back instead.

        Wait for a step with finite gradients first, unless `anyway`: a rollback must not land among skipped steps.
        """
        self.save_deferred = bool(self.state.nonfinite_steps) and not anyway and not self.is_over
        if self.save_deferred:
            return
        yield from self.poll(wait=True)
        self.clock.restart()
        snapshot = take_snapshot(self.model, self.optimizers)
        if any(self.world.all_reduce_max(not snapshot.is_finite())):
            yield from self.roll_back()
            return
        size, config, scaler = self.config.train.tokens_per_step, self.config.model_dump(mode="json"), self.scaler.state_dict()
        state = self.state.to_checkpoint(size, scaler=scaler, environment=self.environment, config=config)
        self.checkpointer.save(snapshot, state)
        self.saved_step = self.state.step

    def poll(self, wait: bool = False) -> Iterator[events.Saved]:
        """Yield `Saved` once the pending checkpoint is on disk; raises the error that its write raised."""
        if saved := self.checkpointer.poll(wait):
            flops = saved.tokens * flops_per_token(self.config.model)
            yield events.Saved(saved.step, saved.tokens, flops, saved.seconds, str(self.run.checkpoint(saved.step)))

    def finish(self, stop_signal: int) -> Iterator[events.Event]:
        """Save a run that was stopped early, and wait until the last checkpoint is on disk."""
        stopped = not self.is_over
        if stopped and self.state.step != self.saved_step:
            yield from self.save_checkpoint(anyway=True)
        yield from self.poll(wait=True)
        # torchrun kills all ranks once one exits with a signal's code, so none may exit while rank 0 is still writing.
        self.world.barrier()
        if stopped:
            yield events.Stopped(*self.progress, stop_signal)
        elif self.state.step < self.max_steps and self.state.lowest_loss is not None:
            yield events.EndedEarly(*self.progress, self.state.lowest_loss, self.state.validations_since)

    def close(self) -> None:
        """Wait for a pending write, and stop the threads."""
        self.checkpointer.close()
        self.prefetch.close()

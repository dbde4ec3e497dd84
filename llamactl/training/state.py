"""State of a training run. All of it is in every checkpoint, so that a resumed run continues identically."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from llamactl.checkpoint.format import State
from llamactl.errors import Diverged
from llamactl.storage.records import look_up

# Consecutive steps without a finite loss and gradient before a rollback.
MAX_NONFINITE_STEPS = 8
MAX_ROLLBACKS = 2
# Steps shown in the error when training diverged.
RECENT_STEPS = 3


@dataclass
class TrainState:
    """Progress of a run, without the weights and the state of the optimizers."""

    micro_batch: int  # windows that fit into memory together
    step: int = 0  # optimizer steps
    seconds: float = 0.0  # of training
    nonfinite_steps: int = 0  # consecutive steps up to this one without a finite loss and gradient
    rollbacks: int = 0
    data_offset: int = 0  # steps of data that rollbacks skipped
    validation_loss: float | None = None  # nats per token
    lowest_loss: float | None = None  # of all validations, where patience asks for it
    validations_since: int = 0  # the lowest one

    @property
    def batch(self) -> int:
        """Return the number of the step's batch in the order of the data."""
        return self.step + self.data_offset

    def take_validation(self, loss: float, patience: int) -> None:
        """Note the loss of a validation; with `patience`, count how long it has not fallen."""
        # A loss that is not a number has no place in a checkpoint; it is shown and logged as it is.
        self.validation_loss = loss if math.isfinite(loss) else None
        if patience <= 0:
            self.lowest_loss, self.validations_since = None, 0
            return
        falls = math.isfinite(loss) and (self.lowest_loss is None or loss < self.lowest_loss)
        self.lowest_loss = loss if falls else self.lowest_loss
        # Before the first loss that is a number there is no best one to stop after.
        self.validations_since = 0 if falls or self.lowest_loss is None else self.validations_since + 1

    @property
    def is_best(self) -> bool:
        """Check whether the last validation was the lowest so far, where patience counts them."""
        return self.lowest_loss is not None and self.validations_since == 0

    def to_checkpoint(self, tokens_per_step: int, **fields: Any) -> State:
        """Build the state.json of a checkpoint; `fields` are passed on to it."""
        # `skipped` and `jumped` keep their old names: they are part of the digests of existing checkpoints.
        return State(
            step=self.step,
            tokens=self.step * tokens_per_step,
            seconds=self.seconds,
            validation_loss=self.validation_loss,
            lowest_loss=self.lowest_loss,
            validations_since=self.validations_since,
            micro_batch=self.micro_batch,
            skipped=self.nonfinite_steps,
            rollbacks=self.rollbacks,
            jumped=self.data_offset,
            **fields,
        )

    def load_checkpoint(self, saved: State, rollback: bool) -> None:
        """Take over the state of a checkpoint; for a `rollback`, keep `rollbacks` and `data_offset`."""
        self.step, self.seconds, self.validation_loss = saved.step, saved.seconds, saved.validation_loss
        self.lowest_loss, self.validations_since = saved.lowest_loss, saved.validations_since
        self.nonfinite_steps = saved.skipped
        # A size below the one that was set is what fitted, so that a larger one is not tried again.
        asked, fitted = look_up(saved.config, "train", "micro_batch"), saved.micro_batch
        if fitted and (asked is None or fitted < asked):
            self.micro_batch = min(self.micro_batch, fitted)
        if not rollback:
            self.rollbacks, self.data_offset = saved.rollbacks, saved.jumped


class NonFiniteGuard:
    """Rules for steps whose loss or gradients are not finite: when to roll back, when to give up."""

    def __init__(self) -> None:
        """Start without recent steps."""
        self._recent_steps: deque[str] = deque(maxlen=RECENT_STEPS)

    def observe(self, state: TrainState, loss: float, norm: float, is_finite: bool) -> None:
        """Count consecutive steps that are not finite; a finite one resets the count."""
        self._recent_steps.append(f"step {state.step} loss {loss:.4g}, gradient norm {norm:.3g}")
        state.nonfinite_steps = 0 if is_finite else state.nonfinite_steps + 1

    def must_roll_back(self, state: TrainState) -> bool:
        """Check whether too many consecutive steps were not finite."""
        return state.nonfinite_steps == MAX_NONFINITE_STEPS

    def check_rollbacks(self, state: TrainState, lr: float) -> None:
        """Raise Diverged if the run has used up its rollbacks; `lr` is its peak learning rate."""
        if state.rollbacks == MAX_ROLLBACKS:
            message = f"Training diverged at step {state.step}, after {MAX_ROLLBACKS} rollbacks to a checkpoint."
            fix = f"Start again with a smaller learning rate: --set optim.lr={lr / 2:.2g}"
            raise Diverged(message, f"The last steps: {'; '.join(self._recent_steps)}. Its checkpoints are valid.", fix)

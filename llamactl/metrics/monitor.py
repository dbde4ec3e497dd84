"""Record the events of a run in its logs, and monitor the loss for spikes and for differences after a resume."""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from llamactl.metrics.jsonl import Journal
from llamactl.runs.metrics_log import read_columns
from llamactl.runs.run_dir import RunDir
from llamactl.storage.folder_guard import RESUME_RUN, FolderGuard, guard_folder
from llamactl.training.events import (
    EndedEarly,
    Event,
    Replayed,
    RolledBack,
    Sampled,
    Spiked,
    Stepped,
    Stopped,
    Validated,
    Warned,
)
from llamactl.training.loss_warnings import judge_losses

# A spike is a loss more than DEVIATIONS standard deviations and more than LEAST_JUMP nats above the median of the last
# REMEMBERED steps.
REMEMBERED, DEVIATIONS, LEAST_JUMP = 64, 8.0, 0.3
DEVIATION_PER_MAD = 1.4826  # standard deviation of a normal distribution per median absolute deviation


def record_events(
    events: Iterator[Event], run: RunDir, guard: FolderGuard | None = None, vocab_size: int = 0
) -> Iterator[Event]:
    """Write each event to a log before yielding it: samples to samples.jsonl, all others to metrics.jsonl.

    Events found by comparison with the log are added: how repeated steps differ from their earlier rows, and spikes of the
    loss. With the dataset's `vocab_size`, a warning is added if a completed run has not learned. Raises FolderMoved when
    `guard`, by default one of the run's current folder, finds that the folder was moved.
    """
    with Journal(run.metrics_path) as metrics, Journal(run.samples_path) as samples, ExitStack() as stack:
        guard = guard or stack.enter_context(guard_folder(run.path, RESUME_RUN))
        notes = Monitor(run)
        for event in events:
            for each in (event, *notes.on(event)):
                guard.check()
                (samples if isinstance(each, Sampled) else metrics).append(each)
                yield each
        for warning in notes.at_the_end(vocab_size):
            metrics.append(warning)
            yield warning


class Monitor:
    """Compares new events with the run's log, and derives further events from them."""

    def __init__(self, run: RunDir) -> None:
        """Read the log; its rows after the checkpoint that the run resumes from will be compared with the repeated steps."""
        self._run = run
        rows = read_columns(run.metrics_path, {Stepped.kind: ("loss",)}, run.path)[Stepped.kind]
        self._steps, self._losses = rows["step"], rows["loss"]  # rows of the log when this process started
        self._recent: dict[int, float] = {}  # losses by step since then, of the last REMEMBERED steps
        self._last = int(self._steps[-1]) if len(self._steps) else 0
        self._replayed = self._different = 0
        self._largest = 0.0
        self._ending: Stepped | None = None

    def on(self, event: Event) -> Iterator[Replayed | Spiked]:
        """Yield the events that follow from an event: a comparison of repeated steps, or a spike."""
        if isinstance(event, RolledBack):  # repeated steps now use other data, so their losses may differ
            kept = int(np.searchsorted(self._steps, event.step, side="right"))
            self._steps, self._losses = self._steps[:kept], self._losses[:kept]
            self._recent = {step: loss for step, loss in self._recent.items() if step <= event.step}
            self._last = 0
        if isinstance(event, Stepped | Stopped | EndedEarly):
            self._ending = event if isinstance(event, Stepped) else None
        if isinstance(event, Stepped):
            if event.step <= self._last:
                yield from self._compared(event)
            yield from self._spikes(event)
            self._recent[event.step] = event.loss
            self._recent.pop(event.step - REMEMBERED, None)

    def _loss(self, step: int) -> float | None:
        """Return the most recent loss logged for a step, or None."""
        if step in self._recent:
            return self._recent[step]
        place = int(np.searchsorted(self._steps, step))
        return float(self._losses[place]) if place < len(self._steps) and self._steps[place] == step else None

    def at_the_end(self, vocab_size: int) -> Iterator[Warned]:
        """Yield a warning if the losses of a run that has just completed its last step are suspect."""
        last = self._ending
        if not last or not vocab_size:
            return
        kinds = {Stepped.kind: ("loss",), Validated.kind: ("loss",)}
        logged = read_columns(self._run.metrics_path, kinds, self._run.path).values()
        losses, validation = (dict(zip(rows["step"].tolist(), rows["loss"].tolist(), strict=True)) for rows in logged)
        if why := judge_losses(losses, validation, vocab_size):
            yield Warned(last.step, last.tokens, last.flops, last.seconds, why)

    def _compared(self, event: Stepped) -> Iterator[Replayed]:
        before = self._loss(event.step)
        if before is not None:
            self._replayed += 1
            self._different += before != event.loss
            self._largest = max(self._largest, abs(event.loss - before))
        if event.step == self._last:
            moment = (event.step, event.tokens, event.flops, event.seconds)
            yield Replayed(*moment, self._replayed, self._different, self._largest)

    def _spikes(self, event: Stepped) -> Iterator[Spiked]:
        """Yield a spike event if the loss is one; earlier losses come from the log, so a resumed run finds the same spikes."""
        found = (self._loss(step) for step in range(event.step - REMEMBERED, event.step))
        before = [loss for loss in found if loss is not None]
        if len(before) < REMEMBERED // 2:
            return
        usual = statistics.median(before)
        deviation = DEVIATION_PER_MAD * statistics.median(abs(loss - usual) for loss in before)
        if event.loss - usual > max(LEAST_JUMP, DEVIATIONS * deviation):
            yield Spiked(event.step, event.tokens, event.flops, event.seconds, event.loss, usual)

"""How a run is written down: one event a line, appended, on the disk within a second."""

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from types import TracebackType

from llamactl import durable
from llamactl.artifacts import RunDir
from llamactl.training.events import Event, Replayed, RolledBack, Sampled, Spiked, Stepped, row

SYNC_EVERY = 0.5  # seconds

# A spike is a loss so many standard deviations above the median of the steps before it, and so much in nats.
REMEMBERED, DEVIATIONS, LEAST_JUMP = 64, 8.0, 0.3
DEVIATION_PER_MAD = 1.4826  # of a normal distribution


def record(events: Iterator[Event], run: RunDir) -> Iterator[Event]:
    """Write each event down before passing it on: samples to samples.jsonl, all else to metrics.jsonl.

    What the log itself knows is added: how steps that were done before compare with their rows, and where the loss jumps.
    """
    notes = Notes(run)
    with Journal(run.metrics_path) as metrics, Journal(run.samples_path) as samples:
        for event in events:
            for each in (event, *notes.on(event)):
                (samples if isinstance(each, Sampled) else metrics).append(each)
                yield each


class Notes:
    """What a run's log says about the events that follow it."""

    def __init__(self, run: RunDir) -> None:
        """Read the log as it is; rows after the checkpoint that the run goes on from will be compared."""
        rows = [row for row in run.rows() if row["kind"] == Stepped.kind]
        self._logged: dict[int, float] = {row["step"]: row["loss"] for row in rows}
        self._last = max(self._logged, default=0)
        self._replayed: list[float] = []

    def on(self, event: Event) -> Iterator[Replayed | Spiked]:
        """What is to be said beside an event."""
        if isinstance(event, RolledBack):  # from here on, other data is no surprise
            self._logged = {step: loss for step, loss in self._logged.items() if step <= event.step}
            self._last = 0
        if isinstance(event, Stepped):
            if event.step <= self._last:
                yield from self._compared(event)
            yield from self._spikes(event)
            self._logged[event.step] = event.loss

    def _compared(self, event: Stepped) -> Iterator[Replayed]:
        if event.step in self._logged:
            self._replayed.append(abs(event.loss - self._logged[event.step]))
        if event.step == self._last:
            different = sum(difference > 0 for difference in self._replayed)
            moment = (event.step, event.tokens, event.flops, event.seconds)
            yield Replayed(*moment, len(self._replayed), different, max(self._replayed, default=0.0))

    def _spikes(self, event: Stepped) -> Iterator[Spiked]:
        """Losses are looked up in the log, so that a run that was resumed finds the spikes of one that was not."""
        before = [self._logged[step] for step in range(event.step - REMEMBERED, event.step) if step in self._logged]
        if len(before) < REMEMBERED // 2:
            return
        usual = statistics.median(before)
        deviation = DEVIATION_PER_MAD * statistics.median(abs(loss - usual) for loss in before)
        if event.loss - usual > max(LEAST_JUMP, DEVIATIONS * deviation):
            yield Spiked(event.step, event.tokens, event.flops, event.seconds, event.loss, usual)


class Journal:
    """A file that rows are appended to, and a thread that has the kernel put them on the disk."""

    def __init__(self, path: Path) -> None:
        """Open it; the half line that a killed writer left is cut off."""
        self._path, self._dirty, self._closed = path, Flag(), Flag()
        self._failure: OSError | None = None
        self._thread = Thread(target=self._keep_synced, daemon=True, name="journal")

    def __enter__(self) -> "Journal":
        """Start to write."""
        with durable.explained(self._path):
            durable.make(self._path.parent)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._descriptor, self._path.read_bytes().rfind(b"\n") + 1)
            durable.sync(self._path.parent)
        self._thread.start()
        return self

    def append(self, event: Event) -> None:
        """Write a row, whole or not at all; raises what kept earlier ones from the disk."""
        with durable.explained(self._path):
            if self._failure:
                raise self._failure
            line = (json.dumps(row(event)) + "\n").encode()
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(28, os.strerror(28))  # a short write is what a full disk does first
        self._dirty.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Sync what is left and close."""
        self._closed.set()
        self._dirty.set()
        self._thread.join()
        os.close(self._descriptor)
        if self._failure and error is None:
            with durable.explained(self._path):
                raise self._failure

    def _keep_synced(self) -> None:
        try:
            while not self._closed.wait(SYNC_EVERY):
                self._sync()
                self._dirty.wait()
            self._sync()
        except OSError as error:
            self._failure = error

    def _sync(self) -> None:
        if self._dirty.is_set():
            self._dirty.clear()
            os.fsync(self._descriptor)

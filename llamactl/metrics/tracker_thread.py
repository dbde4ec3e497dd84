"""Run trackers in threads of their own, so that training neither waits for them nor fails with them.

A tracker that hangs delays nothing, and an exception of a tracker becomes one event; the run continues without it.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread
from typing import Any

from llamactl import install_command
from llamactl.errors import DataError, UsageError, suggest_nearest
from llamactl.escape import escape_control_chars
from llamactl.metrics.trackers import EXTRAS, TRACKERS, Tracker
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Degraded, Event

PATIENCE = 20.0  # seconds that a run waits for its trackers, before its first step and after its last


class TrackerThread:
    """A tracker in a thread of its own."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        """Prepare the thread; `begin`, which creates the tracker, is called only after `start`."""
        self.name, self.opened, self.trouble = name, Flag(), ""
        self._begin, self._events = begin, SimpleQueue[Event | None]()
        self._thread = Thread(target=self._follow, daemon=True, name=name)

    def start(self) -> None:
        """Start the thread, which creates the tracker."""
        self._thread.start()

    def send(self, event: Event | None) -> None:
        """Pass an event on to the tracker, or `None` after the last; a tracker that has failed receives nothing more."""
        if self._thread.is_alive():
            self._events.put(event)

    def wait(self, seconds: float) -> None:
        """Wait at most this many seconds until the tracker has written everything."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.trouble = f"it did not answer for {PATIENCE:.0f} seconds"

    def _follow(self) -> None:
        try:
            tracker = self._begin()
            self.opened.set()
            while event := self._events.get():
                tracker.follow(event)
            tracker.close()
        except BaseException as error:  # no exception of a tracker may end the run
            self.trouble = " ".join(f"{type(error).__name__}: {error}".split())
        finally:
            self.opened.set()


def open_trackers(names: Iterable[str], run: RunDir, config: Mapping[str, Any]) -> list[TrackerThread]:
    """Prepare the trackers with these names, without starting them.

    Raises UsageError for a tracker that is unknown or not installed, DataError if its folder in the run is a symbolic link.
    """
    followers = []
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            raise UsageError(f"There is no tracker {name!r}.", suggest_nearest(name, TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{name} is not installed.", "", install_command(EXTRAS.get(name, name)))
        if (run.path / name).is_symlink():
            raise DataError(f"{run.path / name} is a link.", "Nothing of a run is written through one.", "Remove it.")
        followers.append(TrackerThread(name, partial(TRACKERS[name], run, config)))
    return followers


def track_events(events: Iterator[Event], followers: Sequence[TrackerThread]) -> Iterator[Event]:
    """Yield every event and pass it to the trackers; the failure of a tracker is reported once, as an event of its own."""
    last = None
    _start(followers)
    try:
        for last in events:
            for follower in followers:
                follower.send(last)
            yield last
            yield from _complaints(followers, last)
    finally:
        _finish(followers)
    if last:
        yield from _complaints(followers, last)


def _start(followers: Sequence[TrackerThread]) -> None:
    """Start all trackers in parallel and wait for them, up to PATIENCE seconds; what they print goes to stderr."""
    patience = time.monotonic() + PATIENCE
    with redirect_stdout(sys.stderr):
        for follower in followers:
            follower.start()
        for follower in followers:
            follower.opened.wait(max(0.0, patience - time.monotonic()))


def _finish(followers: Sequence[TrackerThread]) -> None:
    patience = time.monotonic() + PATIENCE
    with redirect_stdout(sys.stderr):
        for follower in followers:
            follower.send(None)
        for follower in followers:
            follower.wait(max(0.0, patience - time.monotonic()))


def _complaints(followers: Sequence[TrackerThread], event: Event) -> Iterator[Degraded]:
    for follower in followers:
        trouble, follower.trouble = follower.trouble, ""
        if trouble:
            why = f"{follower.name} is left out from here on: {escape_control_chars(trouble)}"
            yield Degraded(event.step, event.tokens, event.flops, event.seconds, why)

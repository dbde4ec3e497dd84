"""Trackers beside a run, which neither waits for them nor ends with them.

A tracker is a guest. It has a thread of its own, so that one that hangs holds up nothing; what it raises becomes one event, and
the run goes on without it.
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

from llamactl.artifacts import RunDir
from llamactl.errors import BadUsage, nearest
from llamactl.spelling import safe
from llamactl.training.events import Event, Slowed
from llamactl.training.trackers import EXTRAS, TRACKERS, Tracker

PATIENCE = 20.0  # seconds that a run waits for its trackers, before its first step and after its last


class Follower:
    """A tracker in a thread of its own."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        """Nothing happens before `start`."""
        self.name, self.opened, self.trouble = name, Flag(), ""
        self._begin, self._events = begin, SimpleQueue[Event | None]()
        self._thread = Thread(target=self._follow, daemon=True, name=name)

    def start(self) -> None:
        """Have the tracker open itself."""
        self._thread.start()

    def tell(self, event: Event | None) -> None:
        """Pass an event on, or `None` after the last; one that gave up hears nothing more."""
        if self._thread.is_alive():
            self._events.put(event)

    def wait(self, seconds: float) -> None:
        """Wait until it has written everything, but not longer."""
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
        except BaseException as error:  # a guest does not end the run, whatever it raises
            self.trouble = " ".join(f"{type(error).__name__}: {error}".split())
        finally:
            self.opened.set()


def open_trackers(names: Iterable[str], run: RunDir, config: Mapping[str, Any]) -> list[Follower]:
    """Those of these names, not started yet; raises BadUsage for one that is unknown or not installed."""
    followers = []
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            raise BadUsage(f"There is no tracker {name!r}.", nearest(name, TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise BadUsage(f"{name} is not installed.", "", f"pip install 'llamactl[{EXTRAS.get(name, name)}]'")
        followers.append(Follower(name, partial(TRACKERS[name], run, config)))
    return followers


def tracked(events: Iterator[Event], followers: Sequence[Follower]) -> Iterator[Event]:
    """Pass every event on, and show it to the trackers; what goes wrong with one is said once, as an event of its own."""
    last = None
    _start(followers)
    try:
        for last in events:
            for follower in followers:
                follower.tell(last)
            yield last
            yield from _complaints(followers, last)
    finally:
        _finish(followers)
    if last:
        yield from _complaints(followers, last)


def _start(followers: Sequence[Follower]) -> None:
    """Start all at once and give them time; what they print is no data of ours."""
    patience = time.monotonic() + PATIENCE
    with redirect_stdout(sys.stderr):
        for follower in followers:
            follower.start()
        for follower in followers:
            follower.opened.wait(max(0.0, patience - time.monotonic()))


def _finish(followers: Sequence[Follower]) -> None:
    patience = time.monotonic() + PATIENCE
    with redirect_stdout(sys.stderr):
        for follower in followers:
            follower.tell(None)
        for follower in followers:
            follower.wait(max(0.0, patience - time.monotonic()))


def _complaints(followers: Sequence[Follower], event: Event) -> Iterator[Slowed]:
    for follower in followers:
        trouble, follower.trouble = follower.trouble, ""
        if trouble:
            why = f"{follower.name} is left out from here on: {safe(trouble)}"
            yield Slowed(event.step, event.tokens, event.flops, event.seconds, why)

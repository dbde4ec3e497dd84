"""What a person asks of a run that is going on, by signals: stop after this step, or save."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llamactl.training.launch import launch

STOPPING = "Stopping after this step, with a checkpoint. Once more to stop at once, without one."
ECHO = 5.0  # seconds in which a launcher passes on the signal that its processes have had from the terminal already
FIRST_SCREEN = b"\x1b[?1049l\x1b[?25h"  # the terminal as it was before a live screen, with its cursor


class Wishes:
    """Looked at by the trainer between steps."""

    def __init__(self) -> None:
        """Nothing is wished for yet."""
        self.stop = 0  # the signal that asked for it
        self.save = False


@contextmanager
def listening() -> Iterator[Wishes]:
    """Turn SIGINT and SIGTERM into a wish to stop, a second one into an end at once, and SIGUSR1 into a wish to save."""
    wishes, until = Wishes(), 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal until
        if wishes.stop:
            if time.monotonic() > until:
                _leave(number)
            return
        wishes.stop, until = number, time.monotonic() + (ECHO if launch().size > 1 else 0.0)
        if launch().leads:
            _say(STOPPING)

    def save(*_: object) -> None:
        wishes.save = True

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: save,
    }  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int) -> None:
    """End as the shell expects, with nothing else done: what is being written stays a draft."""
    if sys.stderr.isatty():
        os.write(2, FIRST_SCREEN)
    os._exit(128 + number)


def _say(text: str) -> None:
    """Say it past Python's own buffers, which a handler may have interrupted."""
    os.write(2, f"\r\n{text}\r\n".encode() if sys.stderr.isatty() else f"{text}\n".encode())

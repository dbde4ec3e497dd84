"""Signals to a training run: stop after the current step, or save."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from llamactl.distributed.launch import read_launch

STOPPING = "Stopping after this step, with a checkpoint. Repeat to stop now, without one."
# Seconds in which torchrun forwards a signal that its processes also received from the terminal: not a second request.
FORWARDED_WITHIN = 5.0
# A second one of these stops immediately.
INTERACTIVE = (signal.SIGINT, signal.SIGTERM)
# Closed terminal, CPU time limit, power failure: each terminates a process that does not handle it, as SIGTERM does.
STOPS = (*INTERACTIVE, signal.SIGHUP, signal.SIGXCPU, *([signal.SIGPWR] if hasattr(signal, "SIGPWR") else []))
# Batch systems such as Slurm send one of them some time before they end a job.
SAVES = (signal.SIGUSR1, signal.SIGUSR2)
# xterm: leave the alternate screen, which the live display uses, and show the cursor.
RESTORE_TERMINAL = b"\x1b[?1049l\x1b[?25h"


class StopRequests:
    """Requests that the trainer checks between steps."""

    def __init__(self) -> None:
        """Start without requests."""
        # The signal that requested it; 0: none.
        self.stop = 0
        self.save = False


@contextmanager
def handle_signals() -> Iterator[StopRequests]:
    """Turn signals into requests inside a context: SIGUSR1 and SIGUSR2 save, those that terminate a process stop.

    A second SIGINT or SIGTERM exits immediately. The other signals repeat by themselves: both kernel and shell send SIGHUP,
    and SIGXCPU comes each second. Signals that were ignored before, as nohup does, stay ignored.
    """
    requests, interrupted, forwarded_until = StopRequests(), False, 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal interrupted, forwarded_until
        if number in INTERACTIVE:
            if interrupted and time.monotonic() > forwarded_until:
                _exit_now(number)
            if not interrupted:
                forwarded_until = time.monotonic() + (FORWARDED_WITHIN if read_launch().size > 1 else 0.0)
            interrupted = True
        if not requests.stop:
            requests.stop = number
            if read_launch().is_main:
                _write_stderr(STOPPING)

    def save(*_: object) -> None:
        requests.save = True

    # These two even if ignored, as SIGINT is in the background jobs of a shell script: `kill -INT` must save there too.
    handled = [number for number in (*STOPS, *SAVES) if number in INTERACTIVE or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, save if number in SAVES else stop) for number in handled}
    try:
        yield requests
    except Exception:
        before |= _handlers_after_error()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handlers_after_error() -> dict[signal.Signals, signal.Handlers]:
    """Return what differs from the handlers of before, once a step has failed."""
    # Where one process fails, torchrun ends the others: its SIGTERM must not come before they have shown their error.
    return {signal.SIGTERM: signal.SIG_IGN} if read_launch().size > 1 else {}


def _exit_now(number: int) -> None:
    """Exit with the code that a shell expects of a signal; a pending write remains an unfinished draft."""
    with suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, RESTORE_TERMINAL)
    # Not sys.exit: it would raise in the middle of a step and wait for the threads.
    os._exit(128 + number)


def _write_stderr(text: str) -> None:
    """Write a line to stderr; do nothing if the terminal is gone."""
    # Not print: the handler may have interrupted a write to the same buffer, which is not reentrant.
    with suppress(OSError):
        os.write(2, f"\r\n{text}\r\n".encode() if sys.stderr.isatty() else f"{text}\n".encode())

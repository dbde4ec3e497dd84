"""Type commands one after another, each in a process of its own, as a person would."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

import typer

FORWARDED = (signal.SIGTERM, signal.SIGHUP)


def run_step(command: str, to_continue: Callable[[], str] | None = None) -> None:
    """Print a command and run it; ends with its exit code and message when it fails or is stopped.

    Ctrl-C reaches the command from the terminal, which saves, says how to resume and ends by itself. This process waits, and
    prints what `to_continue` returns: the command that continues from there, by default the one that was stopped.
    """
    from llamactl.cli.ui.console import progress, show_next

    progress.print(f"\n[dim]$[/] [bold cyan]llamactl {command}[/]", markup=True)
    process: subprocess.Popen[bytes] | None = None
    stopped = 0

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = number
        if process and number in FORWARDED:
            process.send_signal(number)

    # Functions, not SIG_IGN, which the command would inherit.
    before = {number: signal.signal(number, wait) for number in (signal.SIGINT, *FORWARDED)}
    try:
        # Blocked until the command can end without a traceback (`__main__`); what came before it was there is sent on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen([sys.executable, "-m", "llamactl", *shlex.split(command)])
            if stopped or signal.SIGINT in signal.sigpending():
                process.send_signal(stopped or signal.SIGINT)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if (stopped or code < 0) and (following := to_continue() if to_continue else f"llamactl {command}"):
        show_next(following, why="Continue")
    if code or stopped:
        raise typer.Exit(128 - code if code < 0 else code or 128 + stopped)

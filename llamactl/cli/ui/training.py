"""Display of a training run: a live screen in a terminal, plain lines elsewhere."""

import shlex
import signal
import time
from types import TracebackType

from rich.live import Live
from rich.text import Text

from llamactl.cli.hints import name_unless_newest
from llamactl.cli.ui.console import progress, show_json, show_next, show_table
from llamactl.cli.ui.live import Course, View
from llamactl.errors import DataError
from llamactl.escape import escape_control_chars
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import (
    Degraded,
    EndedEarly,
    Evaluated,
    Event,
    Replayed,
    Resumed,
    RolledBack,
    Sampled,
    Saved,
    Skipped,
    Spiked,
    Stepped,
    Stopped,
    Validated,
    Warned,
    event_to_row,
)
from llamactl.training.signals import StopRequests
from llamactl.units import show_loss, show_time

PLAIN_LINE_EVERY = 10.0  # seconds between lines where there is no terminal
MIN_TERMINAL = (40, 12)  # cells; a smaller terminal gets plain lines
REFRESH_RATE = 2  # per second


class TrainingScreen:
    """Shows events as they arrive; a context manager, so that the terminal is always restored.

    The live screen is the terminal's alternate screen, as editors use, so that resizing can't tear it; the log lines are
    printed on the main screen afterwards.
    """

    def __init__(self, course: Course, folder: RunDir, as_json: bool = False, requests: StopRequests | None = None) -> None:
        """Prepare a screen; nothing is drawn before the context is entered."""
        self.folder, self._json = folder, as_json
        self._requests = requests or StopRequests()
        self.view = View(course, self._requests)
        self.failure: BaseException | None = None  # the error that ended --json output
        large = progress.width >= MIN_TERMINAL[0] and progress.height >= MIN_TERMINAL[1]
        # redirect_stdout=False: rows of --json must reach stdout, not the live screen.
        self._live = Live(self.view, console=progress, screen=True, refresh_per_second=REFRESH_RATE, redirect_stdout=False)
        self._alive = progress.is_terminal and not progress.is_dumb_terminal and large
        self._last_line = 0.0
        self._resumed_at = 0
        self._ended_before = False  # early, by its patience, before it was resumed
        self.stopped = 0  # number of the signal that stopped the run

    def __enter__(self) -> "TrainingScreen":
        """Open the live screen, where there is one."""
        if self._alive:
            self._live.start()
        elif self.view.course.start_notice and not self._json:
            progress.print(self.view.course.start_notice)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the live screen, print its log lines and the result of the run."""
        if self._alive:
            self._live.stop()
            for line in self.view.lines:
                progress.print(line)
        # After damaged data no "is safe" and no command to resume: what was trained on it is not to be trusted.
        if not isinstance(error, DataError):
            self.show_end(kind is not None)

    def show_end(self, failed: bool) -> None:
        """Print the result, or the command that resumes."""
        saved = self.view.saved
        if not failed and not self.stopped:
            self._show_end()
        elif self.stopped or saved:
            outcome = f"the checkpoint of step {saved.step:,} is safe" if saved else "there was no step to save"
            progress.print(f"Stopped; {outcome}.")
            show_next(f"llamactl train --resume {self.folder.path.name}", why="Resume")

    def show(self, event: Event) -> None:
        """Show one event."""
        if self._json and not self.failure:
            self._print(event)
        self.view.on(event)
        match event:
            case Stepped():
                self._show_step(event)
            case Sampled():
                self._say(f"{event.prompt}[…]{event.text}".replace("\n", "⏎"), "dim", event, cut=True)
            # The view shows the newest checkpoint; a line for each would fill the log.
            case Saved():
                pass
            case Stopped():
                self.stopped = event.signal
            case Resumed():
                self._show_resumed(event)
            case EndedEarly() if event.step == self._resumed_at:
                self._ended_before = True
            case _:
                text, style = _line(event)
                self._say(text, style, event)

    def _print(self, event: Event) -> None:
        """Print an event as JSON; on a broken pipe, request that the run saves and stops."""
        try:
            show_json(event_to_row(event))
        except (OSError, SystemExit) as failure:
            self.failure, self._requests.stop = failure, self._requests.stop or signal.SIGPIPE

    def _show_resumed(self, event: Resumed) -> None:
        self._resumed_at = event.step
        for damaged in event.damaged:
            self._say(f"not used: {damaged}", "red", event)
        self._say("resumed", "bold", event)
        if event.changed:
            self._say(f"settings changed: {', '.join(event.changed)}", "yellow", event)
        if event.differs:
            text = f"the last bits may differ from those of an uninterrupted run: {', '.join(event.differs)}"
            self._say(text, "yellow", event)

    def _show_step(self, event: Stepped) -> None:
        due = time.monotonic() - self._last_line > PLAIN_LINE_EVERY
        if not self._alive and (due or event.step in (1, self.view.course.steps)):
            self._last_line = time.monotonic()
            self._say(self.view.figures(event), "", event)

    def _say(self, text: str, style: str, event: Event, cut: bool = False) -> None:
        # Escape here: the live screen cuts lines to its width before `Screen` escapes them.
        line = Text.assemble((f"{event.step:>7,} ", "dim"), (escape_control_chars(text), style))
        # Cut by rich when it is printed, as the terminal may be resized until then.
        if cut:
            line.no_wrap, line.overflow = True, "ellipsis"
        if self._alive:
            self.view.lines.append(line)
        else:
            progress.print(line)

    def _show_end(self) -> None:
        name, course, saved, validated = self.folder.path.name, self.view.course, self.view.saved, self.view.validated
        if self._resumed_at == course.steps:
            tokens = course.steps * course.tokens_per_step
            progress.print(f"{name} was already finished: it has trained on its {tokens:,} tokens.")
        elif self._ended_before:
            fix = f"llamactl train --resume {name} --patience 0"
            progress.print(f"{name} was already finished: it ended early at step {self._resumed_at:,}. To train on: {fix}")
        elif saved:
            result = f"{show_time(saved.seconds)} of training"
            if validated:
                result += f", {describe_validation(validated)}"
            # What is evaluated at the end is what RUN names: with patience the best, which need not be the newest.
            path = self.folder.checkpoint(validated.step) if isinstance(validated, Evaluated) else saved.path
            show_table(f"{name} is done", {"result": result, "checkpoint": f"{path} (Hugging Face loads it as it is)"})
        answers = self.folder.config().data.loss_on == "assistant"
        show_next(shlex.join(["llamactl", *(["chat", name] if answers else ["plot-loss", *name_unless_newest(self.folder)])]))


def _line(event: EndedEarly | Skipped | Spiked | Validated | RolledBack | Replayed | Degraded | Warned) -> tuple[str, str]:
    """Format an event as a line; return the line and its style."""
    match event:
        case Skipped():
            return f"skipped: loss {event.loss}, gradient norm {event.grad_norm}; the weights are unchanged", "red"
        case Spiked():
            return f"the loss jumped to {event.loss:.3f}; it was {event.usual:.3f}", "yellow"
        case Validated():
            return describe_validation(event), "bold"
        case RolledBack():
            return f"rolled back from step {event.from_step:,}; the data up to that step is skipped", "red"
        case Replayed():
            return _compared(event), "red" if event.different else "dim"
        case EndedEarly():
            return f"ends early: {event.validations} validations without a lower loss than {event.lowest_loss:.3f}", "bold"
        case Degraded() | Warned():
            return event.why, "yellow"


def describe_validation(event: Validated) -> str:
    """Describe a loss with its standard error, and the text that it was measured on."""
    loss = show_loss(event.loss, event.loss_error)
    result = f"validation {loss} nats per token, {event.bits_per_byte:.3f} bits per byte"
    whole = "all " if isinstance(event, Evaluated) else ""
    return f"{result}, on {whole}{event.eval_tokens:,} held-out tokens" if event.eval_tokens else result


def _compared(event: Replayed) -> str:
    steps = f"{event.steps:,} steps were repeated"
    if event.different:
        return f"{steps}, {event.different:,} of them with another loss than logged, by up to {event.largest:.2g}"
    return f"{steps}, each with the logged loss"

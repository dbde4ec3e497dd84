"""What a training run looks like: one live screen in a terminal, plain lines where there is none."""

import json
import time
from types import TracebackType

from rich.live import Live
from rich.text import Text

from llamactl.artifacts import RunDir
from llamactl.cli.live import Course, View
from llamactl.cli.screen import output, progress, show_next, show_table
from llamactl.quantities import show_time
from llamactl.spelling import safe
from llamactl.training.events import (
    Event,
    Replayed,
    Resumed,
    RolledBack,
    Sampled,
    Saved,
    Skipped,
    Slowed,
    Spiked,
    Stepped,
    Stopped,
    Validated,
    row,
)
from llamactl.training.wishes import Wishes

PLAIN_LINE_EVERY = 10.0  # seconds between lines where there is no terminal
SMALLEST = (40, 12)  # cells of a terminal below which there are only lines
REFRESHED = 2  # times a second


class TrainingScreen:
    """Shows events as they come; a context, so that the terminal is left as it was found.

    The live screen is the terminal's second one, as editors use, so that resizing can't tear it; what is worth keeping is
    on the first one afterwards.
    """

    def __init__(self, course: Course, folder: RunDir, as_json: bool = False, wishes: Wishes | None = None) -> None:
        """Nothing is drawn before the context is entered."""
        self.folder, self._json = folder, as_json
        self.view = View(course, wishes)
        large = progress.width >= SMALLEST[0] and progress.height >= SMALLEST[1]
        self._live = Live(self.view, console=progress, screen=True, refresh_per_second=REFRESHED, redirect_stdout=False)
        self._alive = progress.is_terminal and not progress.is_dumb_terminal and large
        self._last_line = 0.0
        self._resumed_at = 0
        self.stopped = 0  # the signal that did

    def __enter__(self) -> "TrainingScreen":
        """Start to draw."""
        if self._alive:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it, leave what is worth keeping, and say what came of the run."""
        if self._alive:
            self._live.stop()
            for line in self.view.lines:
                progress.print(line)
        self.conclude(kind is not None)

    def conclude(self, failed: bool) -> None:
        """The last words: what came of it, or how to go on."""
        saved = self.view.saved
        if not failed and not self.stopped:
            self._show_end()
        elif self.stopped or saved:
            what = f"the checkpoint of step {saved.step:,} is safe" if saved else "there was no step to save"
            progress.print(f"Stopped; {what}.")
            show_next(f"llamactl train --resume {self.folder.path.name}", why="Go on")

    def show(self, event: Event) -> None:
        """Draw one event."""
        if self._json:
            output.print(json.dumps(row(event)), markup=False)
        self.view.on(event)
        match event:
            case Stepped():
                self._show_step(event)
            case Sampled():
                self._say(f"{safe(event.prompt)}[…]{safe(event.text)}".replace("\n", "⏎"), "dim", event, cut=True)
            case Saved():
                pass
            case Stopped():
                self.stopped = event.signal
            case Resumed():
                self._show_resumed(event)
            case _:
                text, style = _line(event)
                self._say(text, style, event)

    def _show_resumed(self, event: Resumed) -> None:
        self._resumed_at = event.step
        for damaged in event.damaged:
            self._say(f"not used: {damaged}", "red", event)
        self._say("resumed", "bold", event)
        if event.differs:
            self._say(f"from here on not bit for bit as before: {', '.join(event.differs)}", "yellow", event)

    def _show_step(self, event: Stepped) -> None:
        due = time.monotonic() - self._last_line > PLAIN_LINE_EVERY
        if not self._alive and (due or event.step in (1, self.view.course.steps)):
            self._last_line = time.monotonic()
            self._say(self.view.figures(event), "", event)

    def _say(self, text: str, style: str, event: Event, cut: bool = False) -> None:
        line = Text.assemble((f"{event.step:>7,} ", "dim"), (text, style))
        if cut:  # to the width that the terminal has when it is printed
            line.no_wrap, line.overflow = True, "ellipsis"
        if self._alive:
            self.view.lines.append(line)
        else:
            progress.print(line)

    def _show_end(self) -> None:
        name, course, saved, validated = self.folder.path.name, self.view.course, self.view.saved, self.view.validated
        if self._resumed_at == course.steps:
            tokens = course.steps * course.tokens_per_step
            progress.print(f"{name} was done already: its {tokens:,} tokens are trained.", markup=False)
        elif saved:
            what = f"{show_time(saved.seconds)} of training"
            if validated:
                what += f", validation {validated.loss:.3f} nats per token, {validated.bits_per_byte:.3f} bits per byte"
            show_table(f"{name} is done", {"result": what, "checkpoint": f"{saved.path} (Hugging Face loads it as it is)"})
        show_next("llamactl plot-loss")


def _line(event: Skipped | Spiked | Validated | RolledBack | Replayed | Slowed) -> tuple[str, str]:
    """What is said of an event, and in which style."""
    match event:
        case Skipped():
            return f"skipped: loss {event.loss}, gradient norm {event.grad_norm}; the weights are unchanged", "red"
        case Spiked():
            return f"the loss jumped to {event.loss:.3f}; it was {event.usual:.3f}", "yellow"
        case Validated():
            return f"validation {event.loss:.3f} nats per token, {event.bits_per_byte:.3f} bits per byte", "bold"
        case RolledBack():
            return f"back from step {event.from_step:,}; the data up to there is left out from now on", "red"
        case Replayed():
            return _compared(event), "red" if event.different else "dim"
        case Slowed():
            return event.why, "yellow"


def _compared(event: Replayed) -> str:
    steps = f"{event.steps:,} steps were done again"
    if event.different:
        return f"{steps}, {event.different:,} of them with another loss than was logged, by {event.largest:.2g} at most"
    return f"{steps}, each with the loss that was logged"

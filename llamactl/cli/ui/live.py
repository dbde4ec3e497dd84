"""The live screen of a run, drawn from its events alone, so that `train` and `watch` show the same."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from llamactl.escape import escape_control_chars
from llamactl.report.plots import Curve, sketch_plot
from llamactl.training.events import Event, Resumed, Sampled, Saved, Stepped, Validated
from llamactl.training.signals import STOPPING, StopRequests
from llamactl.units import show_bytes, show_count, show_loss, show_mfu, show_time

# Points of the curve that are kept; a terminal shows some hundreds.
MOST_POINTS = 2_000
MAX_LINES = 500
MAX_CHART_HEIGHT, MAX_CHART_WIDTH = 16, 110  # cells
CHART_LABELS = 29  # cells to the left and right of the chart
LABEL_WIDTH = 14  # cells
# The first steps are slower, as they compile, and would distort the estimate of the time left.
WARM_UP = 3  # steps


@dataclass(frozen=True)
class Course:
    """The extent of a run: its steps, tokens per step, steps between checkpoints, and the planned seconds per step.

    `start` are the planned seconds before the first step, in which it is compiled.
    """

    title: str
    steps: int
    tokens_per_step: int
    save_every: int
    seconds: float
    start: float = 0.0

    @property
    def start_notice(self) -> str:
        """Describe what happens before the first step; empty where that takes no time."""
        return f"Compiling: the first step comes after about {show_time(self.start)}." if self.start else ""


class View:
    """The state of a run so far, which rich draws to fit the terminal."""

    def __init__(self, course: Course, requests: StopRequests | None = None) -> None:
        """Start empty; a pending stop request of `requests` is shown until the run has stopped."""
        self.course, self._requests = course, requests or StopRequests()
        self.stepped: Stepped | None = None
        self.validated: Validated | None = None
        self.saved: Saved | None = None
        self.sampled: Sampled | None = None
        self.lines: deque[Text] = deque(maxlen=MAX_LINES)  # printed on the terminal after the screen closes
        self._speeds: deque[float] = deque(maxlen=50)
        self._points: list[tuple[int, float]] = []
        self._every, self._seen, self._forget = 1, 0, WARM_UP

    def on(self, event: Event) -> None:
        """Update the view from an event."""
        match event:
            case Stepped():
                self._step(event)
            case Validated():
                self.validated = event
            case Saved():
                self.saved = event
            case Sampled():
                self.sampled = event
            case Resumed():
                self._forget = WARM_UP
            case _:
                pass

    def _step(self, event: Stepped) -> None:
        # After a rollback or a resume steps are run again: drop the old points from there on.
        if self.stepped and event.step <= self.stepped.step:
            self._points = [point for point in self._points if point[0] < event.step]
        self.stepped = event
        self._seen += 1
        self._forget -= 1
        if self._forget < 0 and math.isfinite(event.tokens_per_second):
            self._speeds.append(event.tokens_per_second)
        if self._seen % self._every == 0 and math.isfinite(event.loss):
            self._points.append((event.step, event.loss))
        # Halve the points and then keep half as many new ones, so that memory is bounded and the spacing stays even.
        if len(self._points) > MOST_POINTS:
            self._points, self._every = self._points[::2], 2 * self._every

    @property
    def seconds_left(self) -> float:
        """Estimate the seconds that the remaining steps take, at the measured or else the planned speed."""
        # The median of recent steps: a single step with a checkpoint or a busy machine does not move it.
        remaining = self.course.steps - (self.stepped.step if self.stepped else 0)
        seconds = self.course.tokens_per_step / median(self._speeds) if self._speeds else self.course.seconds
        return remaining * seconds

    def figures(self, event: Stepped) -> str:
        """Format a step on one line."""
        return (
            f"loss {event.loss:.3f}  {show_count(event.tokens_per_second)} tok/s  MFU {show_mfu(event.mfu)}  "
            f"{show_bytes(event.memory)}  {show_time(self.seconds_left)} left"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw lines that fit the terminal: none wraps, and there are at most as many as its height."""
        width, height = options.max_width, options.height or console.height
        facts = self._facts()
        # Title, bar and notice take three lines; a blank line, a log line and the empty last row take the other three.
        spare = height - len(facts) - 6
        chart = self._chart(min(MAX_CHART_WIDTH, width - CHART_LABELS), min(MAX_CHART_HEIGHT, spare)) if spare >= 5 else []
        lines = [Text(self.course.title, style="bold"), self._bar(width), self._notice(), *chart, *facts]
        free = height - len(lines) - 1
        if free > 1 and self.lines:
            lines += [Text(), *list(self.lines)[-(free - 1) :]]
        # The last row and column stay empty: a terminal may scroll or wrap when they are written.
        for line in lines[: height - 1]:
            line = line.copy()
            line.truncate(width - 1, overflow="ellipsis")
            yield line

    def _notice(self) -> Text:
        waiting = "" if self.stepped else self.course.start_notice
        return Text(STOPPING if self._requests.stop else waiting, style="yellow")

    def _bar(self, width: int) -> Text:
        step = self.stepped.step if self.stepped else 0
        share = step / max(1, self.course.steps)
        label = f"  step {step:,} of {self.course.steps:,}  {share:.0%}  {show_time(self.seconds_left)} left"
        cells = max(0, min(MAX_CHART_WIDTH - len(label), width - 2 - len(label)))
        full = round(share * cells)
        return Text.assemble(("━" * full, "cyan"), ("━" * (cells - full), "dim"), label)

    def _chart(self, width: int, height: int) -> list[Text]:
        if len(self._points) < 2:
            return []
        x, y = np.array(self._points).T
        drawn = sketch_plot(Curve("", x, y, (), (), ()), "step", width, height - 3).split("\n")
        return [*(Text(line, style="cyan") for line in drawn[:-2]), *(Text(line, style="dim") for line in drawn[-2:]), Text()]

    def _facts(self) -> list[Text]:
        """Build a line each for the latest loss, speed, validation, sample and checkpoint, where known."""
        rows: list[tuple[str, str]] = []
        if self.stepped:
            step = self.stepped
            rows += [
                ("loss", f"{step.loss:.3f} nats per token   learning rate {step.lr:.2g}   gradient norm {step.grad_norm:.2g}"),
                (
                    "speed",
                    f"{show_count(step.tokens_per_second)} tokens/s   MFU {show_mfu(step.mfu)}   "
                    f"{show_bytes(step.memory)} of memory",
                ),
            ]
        if self.validated:
            result = self.validated
            loss = f"{show_loss(result.loss, result.loss_error)} nats per token"
            rows.append(("validation", f"{loss}   {result.bits_per_byte:.3f} bits per byte   at step {result.step:,}"))
        if self.sampled:
            # Escaped before lines are cut to the width, as escapes are longer than what they stand for.
            sample = f"{escape_control_chars(self.sampled.prompt)}[…]{escape_control_chars(self.sampled.text)}"
            rows.append(("sample", sample.replace("\n", "⏎")))
        rows.append(("checkpoint", self._saving()))
        return [Text.assemble((f"{name:<{LABEL_WIDTH}}", "dim"), value) for name, value in rows]

    def _saving(self) -> str:
        step = self.stepped.step if self.stepped else 0
        following = min(self.course.steps, (step // self.course.save_every + 1) * self.course.save_every)
        latest = f"step {self.saved.step:,}" if self.saved else "none yet"
        return latest if step == self.course.steps else f"{latest}, the next at {following:,} at the latest"

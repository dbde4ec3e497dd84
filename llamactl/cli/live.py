"""A run on one screen, drawn from its events alone, so that it looks the same to who trains it and to who watches it."""

from collections import deque
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from llamactl.plots import Curve, sketch
from llamactl.quantities import show_bytes, show_count, show_time
from llamactl.spelling import safe
from llamactl.training.events import Event, Resumed, Sampled, Saved, Stepped, Validated
from llamactl.training.wishes import STOPPING, Wishes

MOST_POINTS = 2_000  # of the curve; a terminal shows some hundred
MOST_LINES = 500
TALLEST, WIDEST = 16, 110  # cells of the chart
AROUND = 29  # cells beside the chart: its labels
LABEL = 14  # cells in front of a fact
FORGET_FIRST = 3  # steps that are slower than the rest and would spoil the estimate


@dataclass(frozen=True)
class Course:
    """Where a run is going: steps, the tokens of one, steps between checkpoints, and the seconds that a step should take."""

    title: str
    steps: int
    tokens_per_step: int
    save_every: int
    seconds: float


class View:
    """What there is to see of a run by now; rich draws it as high and as wide as the terminal is."""

    def __init__(self, course: Course, wishes: Wishes | None = None) -> None:
        """Nothing has happened yet; a wish to stop is shown for as long as it takes."""
        self.course, self._wishes = course, wishes or Wishes()
        self.stepped: Stepped | None = None
        self.validated: Validated | None = None
        self.saved: Saved | None = None
        self.sampled: Sampled | None = None
        self.lines: deque[Text] = deque(maxlen=MOST_LINES)  # what is left on the terminal afterwards
        self._speeds: deque[float] = deque(maxlen=50)
        self._points: list[tuple[int, float]] = []
        self._every, self._seen, self._forget = 1, 0, FORGET_FIRST

    def on(self, event: Event) -> None:
        """Take notice of an event."""
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
                self._forget = FORGET_FIRST
            case _:
                pass

    def _step(self, event: Stepped) -> None:
        if self.stepped and event.step <= self.stepped.step:  # done again: the curve goes on from there
            self._points = [point for point in self._points if point[0] < event.step]
        self.stepped = event
        self._seen += 1
        self._forget -= 1
        if self._forget < 0:
            self._speeds.append(event.tokens_per_second)
        if self._seen % self._every == 0:
            self._points.append((event.step, event.loss))
        if len(self._points) > MOST_POINTS:
            self._points, self._every = self._points[::2], 2 * self._every

    @property
    def seconds_left(self) -> float:
        """As long as the steps that are left take at the usual speed, or at the one expected."""
        left = self.course.steps - (self.stepped.step if self.stepped else 0)
        each = self.course.tokens_per_step / median(self._speeds) if self._speeds else self.course.seconds
        return left * each

    def figures(self, event: Stepped) -> str:
        """A step on one line."""
        return (
            f"loss {event.loss:.3f}  {show_count(event.tokens_per_second)} tok/s  MFU {event.mfu:.0%}  "
            f"{show_bytes(event.memory)}  {show_time(self.seconds_left)} left"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines that fit: no one wraps, and there are no more than the terminal has."""
        width, height = options.max_width, options.height or console.height
        facts = self._facts()
        spare = height - len(facts) - 6
        chart = self._chart(min(WIDEST, width - AROUND), min(TALLEST, spare)) if spare >= 5 else []
        lines = [Text(self.course.title, style="bold"), self._bar(width), self._notice(), *chart, *facts]
        room = height - len(lines) - 1
        if room > 1 and self.lines:
            lines += [Text(), *list(self.lines)[-(room - 1) :]]
        for line in lines[: height - 1]:
            line = line.copy()
            line.truncate(width - 1, overflow="ellipsis")
            yield line

    def _notice(self) -> Text:
        return Text(STOPPING if self._wishes.stop else "", style="yellow")

    def _bar(self, width: int) -> Text:
        step = self.stepped.step if self.stepped else 0
        share = step / max(1, self.course.steps)
        said = f"  step {step:,} of {self.course.steps:,}  {share:.0%}  {show_time(self.seconds_left)} left"
        cells = max(0, min(WIDEST - len(said), width - 2 - len(said)))
        full = round(share * cells)
        return Text.assemble(("━" * full, "cyan"), ("━" * (cells - full), "dim"), said)

    def _chart(self, width: int, height: int) -> list[Text]:
        if len(self._points) < 2:
            return []
        x, y = zip(*self._points, strict=True)
        drawn = sketch(Curve("", x, y, (), (), ()), "step", width, height - 3).split("\n")
        return [*(Text(line, style="cyan") for line in drawn[:-2]), *(Text(line, style="dim") for line in drawn[-2:]), Text()]

    def _facts(self) -> list[Text]:
        """A line for each thing that is known."""
        rows: list[tuple[str, str]] = []
        if self.stepped:
            step = self.stepped
            rows += [
                ("loss", f"{step.loss:.3f} nats per token   rate {step.lr:.2g}   gradient norm {step.grad_norm:.2g}"),
                (
                    "speed",
                    f"{show_count(step.tokens_per_second)} tokens/s   MFU {step.mfu:.0%}   {show_bytes(step.memory)} of memory",
                ),
            ]
        if self.validated:
            found = self.validated
            said = f"{found.loss:.3f} nats per token   {found.bits_per_byte:.3f} bits per byte   at step {found.step:,}"
            rows.append(("validation", said))
        if self.sampled:
            rows.append(("sample", f"{safe(self.sampled.prompt)}[…]{safe(self.sampled.text)}".replace("\n", "⏎")))
        rows.append(("checkpoint", self._saving()))
        return [Text.assemble((f"{name:<{LABEL}}", "dim"), value) for name, value in rows]

    def _saving(self) -> str:
        step = self.stepped.step if self.stepped else 0
        ahead = min(self.course.steps, (step // self.course.save_every + 1) * self.course.save_every)
        latest = f"step {self.saved.step:,}" if self.saved else "none yet"
        return latest if step == self.course.steps else f"{latest}, the next at {ahead:,}"

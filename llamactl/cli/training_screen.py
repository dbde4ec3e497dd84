"""What a training run looks like: the receipt before it, a live line during it, plain lines where there is no terminal."""

import json
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from llamactl.artifacts import Dataset, RunDir
from llamactl.cli.screen import output, progress, show_next, show_table
from llamactl.config import Config
from llamactl.quantities import show_bytes, show_count, show_time
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
from llamactl.training.plan import Plan
from llamactl.training.world import World

PLAIN_LINE_EVERY = 10.0  # seconds between lines where there is no terminal
FORGET_FIRST = 3  # steps that are slower than the rest and would spoil the estimate


def show_plan(plan: Plan, config: Config, dataset: Dataset, world: World, folder: RunDir) -> None:
    """The receipt: what is about to happen, and what to expect of it."""
    model = config.model
    inside = plan.parameters - plan.embedding_parameters
    shape = f"{model.layers} layers, width {model.width}, {model.heads} heads, {model.kv_heads} key/value heads"
    per_parameter = f"{plan.tokens_per_parameter:.2g} tokens per parameter"
    show_table(
        f"{config.preset} on {dataset.name} into {folder.path}",
        {
            "model": f"{plan.parameters:,} parameters, {inside:,} without embeddings ({shape}, {model.vocab_size:,} ids)",
            **_origin(config),
            "budget": f"{plan.steps:,} steps x {plan.tokens_per_step:,} tokens = {plan.tokens:,} tokens, "
            f"{plan.epochs:.2f} epochs, {per_parameter}",
            "batch": f"{plan.tokens_per_step // model.context} windows of {model.context:,} tokens, {plan.micro_batch} at once"
            + (", activations recomputed to save memory" if config.train.recompute == "on" else ""),
            "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:.2g}, {config.schedule.name}",
            "device": f"{world.device}, {world.precision.name} products ({world.precision.reason}), fp32 weights"
            + (", compiled" if config.train.compile == "on" else ""),
            "disk": f"up to {show_bytes(plan.disk)} for checkpoints of {show_bytes(plan.checkpoint)}",
            "memory": f"about {show_bytes(plan.memory)}; {show_bytes(plan.memory_free)} free",
            "time": f"about {show_time(plan.seconds)}",
        },
    )
    if plan.smoke_test and not config.train.init_from:
        enough = show_count(20 * plan.parameters)
        warning = f" This is a smoke test: {per_parameter} teach little. About 20 make a good model: --tokens {enough}"
        progress.print(Text(warning, style="yellow"))
    if plan.epochs > 4:
        progress.print(Text(f" The data will be seen {plan.epochs:.1f} times; above 4 it teaches little more.", style="yellow"))


def _origin(config: Config) -> dict[str, str]:
    """Where the weights come from and how positions are scaled, as far as there is anything to say."""
    model, rows = config.model, dict[str, str]()
    if config.train.init_from:
        rows["weights"] = f"from {config.train.init_from}, with a fresh optimizer and schedule"
    if model.rope_scaling > 1:
        spanned = f"{model.context:,} of them span what {model.context / model.rope_scaling:,.0f} do unscaled"
        rows["positions"] = f"linear:{model.rope_scaling:g}, so that {spanned}"
    return rows


class TrainingScreen:
    """Shows events as they come; a context, so that the terminal is left as it was found."""

    def __init__(self, plan: Plan, folder: RunDir, as_json: bool) -> None:
        """Nothing is drawn before the context is entered."""
        self._plan, self._folder, self._json = plan, folder, as_json
        columns = (TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[facts]}"))
        self._bar = Progress(*columns, console=progress, transient=True, disable=not progress.is_terminal)
        self._task = self._bar.add_task("starting", total=plan.steps, facts="")
        self._last_line = 0.0
        self._speeds: list[float] = []
        self._resumed_at = 0
        self._saved: Saved | None = None
        self.stopped = 0  # the signal that did
        self._validated: Validated | None = None

    def __enter__(self) -> "TrainingScreen":
        """Start the live line."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it, and say what came of the run."""
        self._bar.stop()
        if kind is None and not self.stopped:
            self._show_end()
        elif self.stopped or self._saved:
            what = f"the checkpoint of step {self._saved.step:,} is safe" if self._saved else "there was no step to save"
            progress.print(f"Stopped; {what}.")
            show_next(f"llamactl train --resume {self._folder.path.name}", why="Go on")

    def show(self, event: Event) -> None:
        """Draw one event."""
        if self._json:
            output.print(json.dumps(row(event)), markup=False)
        match event:
            case Stepped():
                self._show_step(event)
            case Sampled():
                self._say(f"{safe(event.prompt)}[…]{safe(event.text)}".replace("\n", "⏎"), "dim", event, cut=True)
            case Saved():
                self._saved = event
            case Stopped():
                self.stopped = event.signal
            case Resumed():
                self._show_resumed(event)
            case _:
                self._validated = event if isinstance(event, Validated) else self._validated
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
        self._speeds = [*self._speeds[-50:], event.tokens_per_second]
        known = sorted(self._speeds[FORGET_FIRST:])
        usual = known[len(known) // 2] if known else self._plan.tokens / self._plan.seconds
        left = (self._plan.steps - event.step) * self._plan.tokens_per_step / usual
        facts = (
            f"loss {event.loss:.3f}  {show_count(event.tokens_per_second)} tok/s  MFU {event.mfu:.0%}  "
            f"{show_bytes(event.memory)}  {show_time(left)} left"
        )
        self._bar.update(self._task, completed=event.step, description=f"step {event.step:,}/{self._plan.steps:,}", facts=facts)
        due = time.monotonic() - self._last_line > PLAIN_LINE_EVERY
        if not progress.is_terminal and (due or event.step in (1, self._plan.steps)):
            self._last_line = time.monotonic()
            self._say(facts, "", event)

    def _say(self, text: str, style: str, event: Event, cut: bool = False) -> None:
        line = Text.assemble((f"{event.step:>7,} ", "dim"), (text, style))
        if cut:
            line.truncate(progress.width, overflow="ellipsis")
        self._bar.console.print(line)

    def _show_end(self) -> None:
        name = self._folder.path.name
        if self._resumed_at == self._plan.steps:
            progress.print(f"{name} was done already: its {self._plan.tokens:,} tokens are trained.", markup=False)
        elif self._saved:
            what = f"{show_time(self._saved.seconds)} of training"
            if self._validated:
                what += (
                    f", validation {self._validated.loss:.3f} nats per token, {self._validated.bits_per_byte:.3f} bits per byte"
                )
            show_table(
                f"{name} is done", {"result": what, "checkpoint": f"{self._saved.path} (Hugging Face loads it as it is)"}
            )
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

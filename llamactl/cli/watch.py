"""llamactl watch: a run that another terminal trains."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion

if TYPE_CHECKING:
    from llamactl.artifacts import RunDir
    from llamactl.cli.live import Course

PAUSE = 0.5  # seconds between looks


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default="the newest", autocompletion=completion.runs)] = "",
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.")] = False,
) -> None:
    """Watch a run that is being trained, from its log; Ctrl-C ends the watching, not the run."""
    import time
    from contextlib import suppress

    from llamactl.artifacts import RunDir
    from llamactl.cli.training_screen import TrainingScreen
    from llamactl.follow import follow
    from llamactl.training.events import read

    folder = RunDir.named(run).existing()

    class Watched(TrainingScreen):
        """The same screen with other last words: who watches did not stop anything."""

        def conclude(self, failed: bool) -> None:
            show_state(folder)

    with suppress(KeyboardInterrupt), Watched(course_of(folder), folder, json) as screen:
        for rows in follow(folder):
            for row in rows:
                if event := read(row):
                    screen.show(event)
            time.sleep(PAUSE)


def course_of(folder: "RunDir") -> "Course":
    """Where the run is going, from its config and its plan."""
    from llamactl.cli.live import Course

    config, planned = folder.config(), folder.plan() if folder.plan_path.exists() else {}
    steps = -(-config.train.tokens // config.train.tokens_per_step)
    seconds = planned.get("duration", {}).get("steps", 0.0)
    title = f"{folder.path.name}: {config.preset} on {config.data.name}"
    return Course(title, steps, config.train.tokens_per_step, config.train.save_every, seconds / max(1, steps))


def show_state(folder: "RunDir") -> None:
    """What became of it, and the command that makes sense now."""
    from llamactl.cli.screen import progress, show_next
    from llamactl.runs import summarise
    from llamactl.spelling import safe

    summary = summarise(folder)
    progress.print(f"{safe(summary.name)}: {summary.condition}, step {summary.step:,} of {summary.steps:,}.", markup=False)
    following = {"running": f"llamactl watch {summary.name}", "stopped": f"llamactl train --resume {summary.name}"}
    show_next(following.get(summary.condition, f"llamactl plot-loss {summary.name}"))

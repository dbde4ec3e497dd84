"""llamactl watch: show the live screen of a run that another process trains."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion

if TYPE_CHECKING:
    from llamactl.cli.ui.live import Course
    from llamactl.runs.run_dir import RunDir

PAUSE = 0.5  # seconds between reads of the log


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default="the newest", autocompletion=completion.runs)] = "",
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.")] = False,
) -> None:
    """Watch a run that is being trained; Ctrl-C ends the watching, not the run."""
    import time
    from contextlib import suppress

    from llamactl.cli.ui.training import TrainingScreen
    from llamactl.runs.run_dir import RunDir
    from llamactl.runs.tail import MOST_ROWS, follow_rows
    from llamactl.training.events import event_from_row

    folder = RunDir.from_name(run).check_exists()

    class Watched(TrainingScreen):
        """The training screen with another end: closing it does not stop the run."""

        def show_end(self, failed: bool) -> None:
            """Print the state of the run."""
            show_state(folder)

    with suppress(KeyboardInterrupt), Watched(planned_course(folder), folder, json) as screen:
        for rows in follow_rows(folder):
            for row in rows:
                if event := event_from_row(row):
                    screen.show(event)
            if screen.failure:  # nobody reads what is printed any more
                raise screen.failure
            # A full read means that there is more: catch up with a long log without pauses.
            time.sleep(PAUSE if len(rows) < MOST_ROWS else 0)


def planned_course(folder: "RunDir") -> "Course":
    """Read the extent of a run from its config and its plan."""
    import os

    from llamactl.cli.ui.live import Course
    from llamactl.runs.run_dir import plan_number

    config, planned = folder.config(), folder.plan() if os.path.lexists(folder.plan_path) else {}
    steps = -(-config.train.tokens // max(1, config.train.tokens_per_step))
    # Without a plan the time left is shown once steps have been measured.
    title = f"{folder.path.name}: {config.preset} on {config.data.name}"
    return Course(
        title,
        steps,
        config.train.tokens_per_step,
        max(1, config.train.save_every),
        plan_number(planned, "duration", "steps") / max(1, steps),
        plan_number(planned, "duration", "start"),
    )


def show_state(folder: "RunDir") -> None:
    """Print the state of a run and the next command."""
    from llamactl.cli.ui.console import progress, show_next
    from llamactl.runs.summary import summarize_run

    summary = summarize_run(folder)
    progress.print(f"{summary.name}: {summary.describe_condition()}, step {summary.step:,} of {summary.steps:,}.")
    next_commands = {"running": f"llamactl watch {summary.name}", "stopped": f"llamactl train --resume {summary.name}"}
    show_next(next_commands.get(summary.condition, f"llamactl plot-loss {summary.name}"))

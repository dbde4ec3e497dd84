"""llamactl quickstart: from text to a model that writes, in one command and the time that is given."""

import shlex
from time import monotonic
from typing import Annotated

import typer

# Seconds for what comes after training: a picture and samples, of which each loads PyTorch.
AFTERWARDS = 15.0
LEAST = 20.0  # seconds of training below which nothing is learned


def quickstart(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Files or folders of text.", show_default="the embedded sample")
    ] = None,
    time: Annotated[str, typer.Option(help="What all of it may take: 90s, 10m, 2h.")] = "10m",
) -> None:
    """Make a model of your text in the time you have: prepare, train, plot and sample."""
    from llamactl.cli.steps import run_step
    from llamactl.cli.ui.console import progress, show_next
    from llamactl.corpus.sources import Reading, open_source
    from llamactl.runs.run_dir import RunDir
    from llamactl.units import read_time

    seconds, started = read_time(time), monotonic()
    sources = text or ["sample"]
    name = open_source(sources, Reading()).name
    # What is prepared stays, so that the same command continues.
    again = following = f"llamactl quickstart {shlex.join([*(text or []), '--time', time])}"
    try:
        run_step(f"prepare {shlex.join(sources)}", lambda: again)
        folder = RunDir.with_new_name(name)
        run = folder.path.name
        left = max(LEAST, seconds - (monotonic() - started) - AFTERWARDS)
        training = f"train --data {shlex.quote(name)} --time {left:.0f}s --run {run}"
        # A run that has begun says by itself how it is resumed.
        run_step(training, lambda: "" if folder.config_path.exists() else again)
        following = f"llamactl plot-loss {run}"
        run_step(f"plot-loss {run}")
        run_step(f"sample {shlex.quote(held_out_prompt(name))} --run {run} --n 2 --max-new-tokens 80")
    except KeyboardInterrupt:  # between two steps
        show_next(following, why="Continue")
        raise
    progress.print("\n[bold]That is your own Llama.[/] The prompt is from text that it never saw in training.", markup=True)
    show_next(f"llamactl quickstart {shlex.join(sources)} --time 1h", why="With more time")


def held_out_prompt(name: str) -> str:
    """Return how a held-out document of a dataset begins."""
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.corpus.openings import held_out_openings

    dataset = DatasetDir.from_name(name).open()
    return next(iter(held_out_openings(dataset, 1)), "The")

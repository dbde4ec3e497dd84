"""llamactl report: write one HTML page about one or more runs."""

from pathlib import Path
from typing import Annotated

import typer

from llamactl.cli import completion
from llamactl.cli.hints import sample_next


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="One or more runs.", show_default="the newest", autocompletion=completion.runs),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="An .html file.", show_default="report.html in the first run")] = None,
) -> None:
    """Write an HTML page about one or more runs: curves to explore, results, settings, samples. It needs no network."""
    from llamactl.cli.ui.console import output, show_next, suggest_out
    from llamactl.config.parameters import num_params
    from llamactl.report.page import render_report
    from llamactl.report.run_data import read_run_data
    from llamactl.runs.run_dir import RunDir
    from llamactl.storage import atomic

    # dict.fromkeys: a run that is named twice is shown once.
    folders = [RunDir.from_name(name).check_exists() for name in dict.fromkeys(runs or [""])]
    data = [read_run_data(folder, num_params(folder.config().model)) for folder in folders]
    path = out or folders[0].path / "report.html"
    with suggest_out(out, path):
        atomic.write_file(path, render_report(data))
    output.print(str(path))
    show_next(sample_next(folders[0]))

"""llamactl report: runs become one page."""

from pathlib import Path
from typing import Annotated

import typer

from llamactl.cli import completion


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="One or several.", show_default="the newest", autocompletion=completion.runs),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="An .html file.", show_default="report.html in the first run")] = None,
) -> None:
    """Make one page of one or several runs: curves to explore, figures, settings, samples. It opens without network."""
    from llamactl import durable
    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import output, show_next
    from llamactl.model.llama import count
    from llamactl.report.page import page
    from llamactl.report.subject import read_subject

    folders = [RunDir.named(name).existing() for name in dict.fromkeys(runs or [""])]
    subjects = [read_subject(folder, count(folder.config().model)) for folder in folders]
    path = out or folders[0].path / "report.html"
    durable.write(path, page(subjects))
    output.print(str(path), markup=False)
    show_next('llamactl sample "California is "')

"""llamactl verify: damage is found before it is used."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamactl.artifacts import RunDir

NAMES_HELP = "A dataset or a run: NAME, data/NAME or runs/NAME."


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=NAMES_HELP, show_default="the newest dataset")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each file.")] = False,
) -> None:
    """Find damage in datasets and runs, and name the file."""
    from json import dumps

    from llamactl.cli.screen import output, progress
    from llamactl.errors import BadData
    from llamactl.spelling import safe

    damaged = []
    for name in names or [""]:
        count = 0
        for file, damage in verdicts(name):
            count += 1
            if json:
                output.print(dumps({"file": file, "damage": damage or None}), markup=False)
            if damage:
                damaged.append(file)
                progress.print(f"✗ {safe(file)}: {safe(damage)}", markup=False, style="red")
        progress.print(f"{count} files of {safe(name) or 'the newest dataset'} read", markup=False)
    if damaged:
        raise BadData(f"{len(damaged)} files are damaged, the first is {damaged[0]}.", "", "Make them again.")


def verdicts(name: str) -> Iterator[tuple[str, str]]:
    """The files of what a person named, a run or a dataset, and what is wrong with each."""
    from llamactl.artifacts import DatasetDir, RunDir
    from llamactl.corpus import verify as datasets

    path = PurePath(name)
    run = RunDir.named(path.name) if path.name else None
    if run and (path.parent.name == "runs" or (path.parent.name != "data" and run.config_path.exists())):
        yield from whole_run(run.existing())
    else:
        folder = DatasetDir.named(path.name)
        yield from ((str(folder.path / file), damage) for file, damage in datasets.verify(folder))


def whole_run(run: "RunDir") -> Iterator[tuple[str, str]]:
    """The files of a run: its config and its log must be readable, its checkpoints as they were written."""
    from llamactl import checkpoint
    from llamactl.errors import UserError

    for path, reading in ((run.config_path, run.config), (run.environment_path, run.environment), (run.metrics_path, run.rows)):
        try:
            reading()
        except UserError as error:
            yield str(path), f"{error.what} {error.why}".strip()
        else:
            yield str(path), ""
    for step in run.steps():
        yield from ((str(file), damage) for file, damage in checkpoint.verify(run.checkpoint(step)))

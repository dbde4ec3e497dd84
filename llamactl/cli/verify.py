"""llamactl verify: damage is found before it is used."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamactl.artifacts import RunDir


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="data/NAME or runs/NAME.", show_default="the newest dataset")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each file.")] = False,
) -> None:
    """Find damage in datasets and checkpoints, and name the file."""
    from json import dumps

    from llamactl.cli.screen import output, progress, safe
    from llamactl.errors import BadData

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
    """The files of what a person named, and what is wrong with each."""
    from llamactl.artifacts import DatasetDir, RunDir
    from llamactl.corpus import verify as datasets

    path = PurePath(name)
    if path.parent.name == "runs":
        yield from checkpoints(RunDir.named(path.name).existing())
    else:
        folder = DatasetDir.named(path.name)
        yield from ((str(folder.path / file), damage) for file, damage in datasets.verify(folder))


def checkpoints(run: "RunDir") -> Iterator[tuple[str, str]]:
    """The checkpoints of a run."""
    from llamactl.checkpoint import verified
    from llamactl.errors import UserError

    for step in run.steps():
        try:
            verified(run.checkpoint(step))
        except UserError as error:
            yield str(run.checkpoint(step)), error.what
        else:
            yield str(run.checkpoint(step)), ""

"""llamactl doctor: whether this machine can train, and what would mend it."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli.settings import DeviceName

if TYPE_CHECKING:
    from llamactl.training.findings import Finding

MARKS = {"fine": ("✓", "green"), "note": ("!", "yellow"), "wrong": ("✗", "bold red")}
NAME_WIDTH = 10  # characters


def doctor(
    device: DeviceName = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Ask nothing of the network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each finding as a line of JSON.")] = False,
) -> None:
    """Try what training needs: packages, device, compiler, disk, network.

    The exit code is 0 when nothing is wrong, and 4 when something is; notes (!) are no faults.
    """
    from dataclasses import asdict
    from json import dumps

    from llamactl.cli.screen import output, progress
    from llamactl.errors import NoRoom
    from llamactl.training.doctor import checks

    verdicts = []
    for check in checks(device, offline):
        with progress.status(f"looking at {check.name} ..."):
            finding = check.carry_out()
        verdicts.append(finding.verdict)
        if json:
            output.print(dumps(asdict(finding)), markup=False)
        else:
            show(finding)
    wrong, notes = verdicts.count("wrong"), verdicts.count("note")
    noted = f"{notes} to know of, " if notes else ""
    progress.print(f"{wrong or 'nothing'} wrong, {noted}{len(verdicts) - wrong - notes} fine", style="dim")
    if wrong:
        raise typer.Exit(NoRoom.code)


def show(finding: "Finding") -> None:
    """A line, and below it what mends it; on a terminal what is longer than a line stays in its column."""
    from textwrap import wrap

    from rich.text import Text

    from llamactl.cli.screen import output
    from llamactl.spelling import safe

    mark, style = MARKS[finding.verdict]
    width = max(40, output.width - NAME_WIDTH - 4) if output.is_terminal else 10_000
    margin = " " * (NAME_WIDTH + 4)
    first, *rest = wrap(safe(finding.what), width, break_on_hyphens=False) or [""]
    output.print(Text.assemble((f"{mark} ", style), (f"{finding.name:<{NAME_WIDTH}}  ", "bold"), first))
    for line in rest:
        output.print(Text(margin + line))
    for number, line in enumerate(wrap(safe(finding.fix), width - 2, break_on_hyphens=False)):
        output.print(Text(f"{margin}{' ' if number else '→'} {line}", style="cyan"))

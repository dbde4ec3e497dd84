"""llamactl doctor: check that this machine can train, and suggest fixes."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli.options import DeviceName
from llamactl.cli.preconditions import import_torch

if TYPE_CHECKING:
    from llamactl.diagnostics.check import CheckResult

MARKS = {"fine": ("✓", "green"), "note": ("!", "yellow"), "wrong": ("✗", "bold red")}
NAME_WIDTH = 10  # characters


def doctor(
    device: DeviceName = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Do not use the network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each result as a line of JSON.")] = False,
) -> None:
    """Check what training needs: packages, device, compiler, disk, network.

    The exit code is 0 when nothing is wrong, and 4 when something is; notes (!) are not errors.
    """
    import_torch()
    from dataclasses import asdict

    from llamactl.cli.ui.console import progress, show_json
    from llamactl.diagnostics.doctor import list_checks
    from llamactl.errors import OutOfSpace

    verdicts = []
    for check in list_checks(device, offline):
        with progress.status(f"checking {check.name} ..."):
            result = check.carry_out()
        verdicts.append(result.verdict)
        if json:
            show_json(asdict(result))
        else:
            show_result(result)
    wrong, notes = verdicts.count("wrong"), verdicts.count("note")
    noted = f"{notes} {'note' if notes == 1 else 'notes'}, " if notes else ""
    progress.print(f"{wrong or 'nothing'} wrong, {noted}{len(verdicts) - wrong - notes} fine", style="dim")
    if wrong:
        raise typer.Exit(OutOfSpace.code)


def show_result(result: "CheckResult") -> None:
    """Print the result of a check and, below it, the fix."""
    from textwrap import wrap

    from rich.text import Text

    from llamactl.cli.ui.console import output
    from llamactl.escape import escape_control_chars

    mark, style = MARKS[result.verdict]
    # Into a file or a pipe a result is one line, so that grep finds all of it.
    width = max(40, output.width - NAME_WIDTH - 4) if output.is_terminal else 10_000
    margin = " " * (NAME_WIDTH + 4)
    # Not broken at hyphens: commands and paths can be copied.
    first, *rest = wrap(escape_control_chars(result.what), width, break_on_hyphens=False) or [""]
    output.print(Text.assemble((f"{mark} ", style), (f"{result.name:<{NAME_WIDTH}}  ", "bold"), first))
    for line in rest:
        output.print(Text(margin + line))
    for number, line in enumerate(wrap(escape_control_chars(result.fix), width - 2, break_on_hyphens=False)):
        output.print(Text(f"{margin}{' ' if number else '→'} {line}", style="cyan"))

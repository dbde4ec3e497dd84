"""What people see: data on stdout, progress and errors on stderr, nothing that can move their cursor by itself."""

import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamactl.spelling import safe

NOBODY_READS = 141  # what the shell says of a process that SIGPIPE ended


class Screen(Console):
    """A console whose reader may go away, as `head` does when it has seen enough."""

    def on_broken_pipe(self) -> None:
        """End without a word."""
        self.quiet = True
        let_go()
        raise SystemExit(NOBODY_READS)


def let_go() -> None:
    """Have nothing more written to a stdout that takes nothing, not even when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


output = Screen(highlight=False, soft_wrap=True)
progress = Screen(stderr=True, highlight=False, soft_wrap=True)


def show_error(*lines: str) -> None:
    """What happened in red, then why, then the way out."""
    shown = (safe(line).replace("\n", "\\n") for line in lines if line)  # a file's name may hold a line break
    for number, line in enumerate(shown):
        progress.print(Text(f"✗ {line}" if number == 0 else f"  {line}", style="bold red" if number == 0 else ""))


def show_table(title: str, rows: Mapping[str, str]) -> None:
    """A few named facts under a title."""
    progress.print(Text(title, style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(f" {name}", Text(safe(value)))
    progress.print(table)


def show_columns(names: Sequence[str], rows: Iterable[Sequence[str]], dim: Collection[int] = ()) -> None:
    """A table with a heading, on stdout, as wide as it is: nothing is cut, also where it is read by a program.

    The rows whose numbers, from 1, are in `dim` are greyed.
    """
    cells = [list(names), *([safe(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        output.print(Text(line, style="dim" if number in dim else "" if number else "bold"))


def show_figures(title: str, rows: Mapping[str, str], record: Mapping[str, Any] | None) -> None:
    """What was measured: a table for people or, with a record, JSON on stdout."""
    if record is None:
        show_table(title, rows)
    else:
        output.print(json.dumps(record, indent=1), markup=False)


def show_next(command: str, why: str = "Next") -> None:
    """The command that makes sense now."""
    progress.print(Text.assemble((f"{why}: ", "dim"), (command, "bold cyan")))

"""Terminal output: data on stdout, progress and errors on stderr, both with control characters escaped."""

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llamactl.errors import WriteFailed
from llamactl.escape import escape_control_chars
from llamactl.storage.records import to_json

# The exit status that a shell reports for a process ended by SIGPIPE: 128 + 13.
BROKEN_PIPE = 141


class Screen(Console):
    """A console that escapes control characters in all text, so that no file content can control the terminal.

    Text of a log, a checkpoint or a command line is not parsed as markup. A broken pipe, as after `| head`, ends the process
    quietly.
    """

    def __init__(self, stderr: bool = False) -> None:
        """Write to stdout, or to stderr."""
        # Soft wrap: lines are left to the terminal, so that what is copied or piped has no line breaks of ours.
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._verbatim = False

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render, then escape control characters in the text; the control codes of rich itself are kept."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            # Segments with `control` are made by rich, to move the cursor of a live screen, and never hold text of ours.
            yield segment if control or self._verbatim else Segment(escape_control_chars(text), style)

    def print_data(self, *parts: str | tuple[str, str], end: str = "\n") -> None:
        """Print styled parts of text: unchanged into a file or a pipe, which a program may read, and escaped on a terminal."""
        self._verbatim = not self.is_terminal
        try:
            self.print(Text.assemble(*parts), end=end)
        finally:
            self._verbatim = False

    def on_broken_pipe(self) -> None:
        """Exit with status 141 and without a message."""
        self.quiet = True
        abandon_stdout()
        raise SystemExit(BROKEN_PIPE)


def abandon_stdout() -> None:
    """Discard all further output to stdout, also what Python flushes at exit."""
    discard_output(sys.stdout.fileno())


def discard_output(descriptor: int) -> None:
    """Redirect a file descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class Unbreakable:
    """A text stream that ignores write errors, such as those of a terminal whose connection was lost."""

    def __init__(self, stream: IO[str]) -> None:
        """Wrap a stream."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Look up everything else on the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, ignoring an OSError."""
        with self._ignore_os_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, ignoring an OSError."""
        with self._ignore_os_errors():
            self._stream.flush()

    @contextmanager
    def _ignore_os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Otherwise the rest of its buffer fails again when Python flushes it at exit.
            with suppress(OSError, ValueError):
                discard_output(self._stream.fileno())


class Progress(Screen):
    """The console for progress messages, which ignores write errors: a run outlives its terminal."""

    @property
    def file(self) -> IO[str]:
        """Return the stream it writes to, which ignores write errors."""
        # Wrapped at each access, as rich looks up the present sys.stderr at each access too.
        return cast(IO[str], Unbreakable(super().file))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        """Write to another stream."""
        self._file = new_file


output = Screen()
progress = Progress(stderr=True)


def show_error(*lines: str) -> None:
    """Print what happened in red, then why, then what to do."""
    for number, line in enumerate(escape_line(line) for line in lines if line):
        progress.print(Text(f"✗ {line}" if number == 0 else f"  {line}", style="bold red" if number == 0 else ""))


def escape_line(text: str) -> str:
    """Escape control characters and line breaks, which file names may hold, for a cell or a message."""
    return escape_control_chars(text).replace("\n", "\\n").replace("\t", "\\t")


def show_table(title: str, rows: Mapping[str, str]) -> None:
    """Print rows of names and values under a title, on stderr."""
    progress.print(Text(escape_line(title), style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(f" {name}", Text(escape_line(value)))
    progress.print(table)


def show_columns(names: Sequence[str], rows: Iterable[Sequence[str]], dim: Collection[int] = ()) -> None:
    """Print a table on stdout at its full width; no cell is truncated.

    The rows whose numbers, from 1, are in `dim` are greyed.
    """
    # Not a table of rich's, which fits columns to the terminal: the output is also read by programs.
    cells = [list(names), *([escape_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        output.print(Text(line, style="dim" if number in dim else "" if number else "bold"))


def show_figures(title: str, rows: Mapping[str, str], record: Mapping[str, Any] | None) -> None:
    """Print measurements: a table on stderr or, given a record, JSON on stdout."""
    if record is None:
        show_table(title, rows)
    else:
        show_json(record, indent=1)


def show_list(
    names: Sequence[str], rows: Sequence[Sequence[str]], records: Sequence[Any] | None, noun: str, command: str
) -> None:
    """Print rows as a table, or dataclasses as lines of JSON; where there are no rows, the command that makes the first."""
    if records is not None:
        for record in records:
            show_json(asdict(record))
    elif rows:
        show_columns(names, rows)
    else:
        progress.print(f"There is no {noun} yet.")
        show_next(command)


def show_json(value: Any, indent: int | None = None) -> None:
    """Print strict JSON on stdout: one line, unless it is indented."""
    output.print(to_json(value, indent))


@contextmanager
def suggest_out(out: Path | None, path: Path) -> Iterator[None]:
    """Suggest --out in the error for a file that can't be written into a run's folder; raises WriteFailed."""
    from llamactl.storage import disk

    try:
        with disk.wrap_os_errors(path):
            yield
    except WriteFailed as error:
        raise error if out else WriteFailed(error.what, error.why, f"Write it elsewhere: --out {path.name}") from error


def show_next(command: str, why: str = "Next") -> None:
    """Print the command to run next, on stderr."""
    progress.print(Text.assemble((f"{why}: ", "dim"), (command, "bold cyan")))

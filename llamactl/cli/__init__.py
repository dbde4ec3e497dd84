"""PEOPLE: one file a command, each of which parses, calls one function and shows what came of it."""

import errno
import os
import re
import sys
import time
import traceback
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from llamactl import __version__
from llamactl.cli import (
    bench,
    chat,
    config,
    data,
    doctor,
    evaluate,
    export,
    finetune,
    plan,
    plot_loss,
    prepare,
    quickstart,
    report,
    runs,
    sample,
    serve,
    surprise,
    train,
    verify,
    watch,
)
from llamactl.errors import OutOfSpace, UsageError, UserError

EPILOG = (
    "Exit codes: 0 done, 1 a bug of ours, 2 usage, 3 missing or damaged data or checkpoint, 4 does not fit or can't be written "
    "(memory, disk), 5 network, 6 diverged, 7 in use by another process, 8 another process of the run is gone, 129, 130, 143 "
    "and so on stopped by a signal (128 and its number) with a checkpoint saved, 141 broken pipe. "
    "Data and runs are kept in ./data and ./runs, or under LLAMACTL_HOME."
)

FULL = "Close other programs, or take a smaller model, batch or context."

# Seconds that others leave the first process to say what is wrong: when it is wrong for all, torchrun ends them meanwhile.
PATIENCE = 2.0

REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE,
}  # fmt: skip

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings={"max_content_width": 100}
)
app.command(rich_help_panel="Start here", epilog="Example: llamactl quickstart my.txt notes/ --time 10m")(quickstart.quickstart)
for command, name, example in (
    (prepare.prepare, "prepare", "llamactl prepare sample"),
    (plan.plan, "plan", "llamactl plan --preset 150m --tokens 3B --card rtx4090 --price 0.35/h"),
    (train.train, "train", "llamactl train --preset tiny --tokens 2M"),
    (finetune.finetune, "finetune", "llamactl finetune chat.jsonl --from RUN"),
    (watch.watch, "watch", "llamactl watch"),
    (plot_loss.plot_loss, "plot-loss", "llamactl plot-loss --x time --out loss.svg"),
    (report.report, "report", "llamactl report a b --out report.html"),
    (sample.sample, "sample", 'llamactl sample "California is " --n 3'),
    (chat.chat, "chat", "llamactl chat RUN@best"),
    (serve.serve, "serve", "llamactl serve RUN@best"),
    (evaluate.evaluate, "eval", "llamactl eval my.txt --run RUN@best"),
    (surprise.surprise, "surprise", 'llamactl surprise "The people of the United States" --out surprise.html'),
):
    app.command(name, rich_help_panel="Pipeline", epilog=f"Example: {example}")(command)
app.add_typer(export.app, name="export", rich_help_panel="Pipeline")
app.add_typer(data.app, name="data", rich_help_panel="Maintenance")
app.add_typer(runs.app, name="runs", rich_help_panel="Maintenance")
app.add_typer(bench.app, name="bench", rich_help_panel="Maintenance")
app.command(rich_help_panel="Maintenance", epilog="Example: llamactl verify data/sample")(verify.verify)
app.command(rich_help_panel="Maintenance", epilog="Example: llamactl doctor")(doctor.doctor)
app.command(rich_help_panel="Maintenance", epilog="Example: llamactl config --preset tiny --section optim")(config.config)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llamactl {__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def llamactl(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train a real Llama from scratch, on your own machine, and understand every step."""
    if debug:
        os.environ["LLAMACTL_DEBUG"] = "1"


def main() -> None:
    """Run the console script: errors become three lines and an exit code, tracebacks only with --debug."""
    if sys.platform == "win32":
        sys.exit("llamactl needs Linux or macOS. On Windows it runs in WSL: https://learn.microsoft.com/windows/wsl/install")
    _print_any_text()
    try:
        sys.exit(_run())
    except UserError as error:
        _fail(error.code, error, error.what, error.why, error.fix)
    except KeyboardInterrupt:
        _fail(130, None, "Stopped.")
    except OSError as error:
        _refused(error)
    except MemoryError as error:
        _fail(OutOfSpace.code, error, "The memory is full.", "", FULL)
    except RuntimeError as error:
        _broken(error)
    except Exception as error:  # whatever reaches this line is a bug; people get its name, developers its place
        _fail(1, error, f"A bug in llamactl: {type(error).__name__}: {error}", "", "To see where: llamactl --debug ...")


def _run() -> int:
    """Run the command that was typed; what typer refuses of it is said as every other error is, which escapes it."""
    try:
        ended = app(prog_name="llamactl", standalone_mode=False)
    except Exception as error:
        # Some versions of typer have click inside and others beside them: its errors are known by what they can do.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        if type(error).__name__ != "NoArgsIsHelpError":  # which has printed the help
            _fail(UsageError.code, None, *_explain_usage(error, explain()))
        return UsageError.code
    return ended if isinstance(ended, int) else 0


def _explain_usage(error: Any, message: str) -> tuple[str, ...]:
    """Say what click refuses of a command line, why, and what to type instead."""
    from llamactl.cli.corrections import correct_command, correct_option

    context = getattr(error, "ctx", None)
    if context is None:
        return (message,)
    if option := getattr(error, "option_name", None) if hasattr(error, "possibilities") else None:
        return f"There is no option {option} of {context.command_path}.", *correct_option(option, context)
    if command := re.fullmatch(r"No such command '(.*)'\.(?s:.*)", message):
        return f"There is no command {command[1]!r}.", *correct_command(command[1], context)
    return message, context.get_usage(), f"Try: {context.command_path} --help"


def _broken(error: RuntimeError) -> None:
    """Torch has no type of its own for a full memory; anything else is a bug."""
    if "torch" in sys.modules:
        from llamactl.hardware.device import is_out_of_memory

        if is_out_of_memory(error):
            _fail(OutOfSpace.code, error, "The memory is full.", str(error).splitlines()[0], FULL)
    _fail(1, error, f"A bug in llamactl: {type(error).__name__}: {error}", "", "To see where: llamactl --debug ...")


def _print_any_text() -> None:
    """Have text printed that the locale has no letters for: as UTF-8 where that is plain ASCII, else as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            plain = stream.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")
            stream.reconfigure(encoding="utf-8" if plain else None, errors="backslashreplace")


def _refused(error: OSError) -> None:
    """Report what the operating system refused; any other OSError is a bug of ours."""
    from llamactl.cli.ui.console import abandon_stdout

    if error.errno not in REFUSALS:
        _fail(1, error, f"A bug in llamactl: {type(error).__name__}: {error}", "", "To see where: llamactl --debug ...")
    abandon_stdout()
    where = f" at {error.filename}" if error.filename else ""
    fix = "Allow more open files: ulimit -n 4096" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    _fail(OutOfSpace.code, error, f"The system refused to continue{where}.", f"{error.strerror}.", fix)


def _fail(code: int, error: Exception | None, *lines: str) -> None:
    from llamactl.cli.ui.console import show_error
    from llamactl.distributed.launch import read_launch

    process = read_launch()
    if not process.is_main:
        time.sleep(PATIENCE)
        lines = (f"Process {process.rank} of {process.size}: {lines[0]}", *lines[1:])
    if error and os.environ.get("LLAMACTL_DEBUG"):
        traceback.print_exception(error)
    show_error(*lines)
    sys.exit(code)

"""PEOPLE: one file a command, each of which parses, calls one function and shows what came of it."""

import errno
import os
import sys
import time
import traceback
from typing import Annotated

import typer

from llamactl import __version__
from llamactl.cli import (
    bench,
    config,
    demo,
    doctor,
    evaluate,
    export,
    plan,
    plot_loss,
    prepare,
    report,
    runs,
    sample,
    surprise,
    train,
    verify,
    watch,
)
from llamactl.errors import NoRoom, UserError

EPILOG = (
    "Exit codes: 0 done, 1 a bug of ours, 2 usage, 3 missing or damaged data or checkpoint, 4 does not fit or can't be written "
    "(memory, disk), 5 network, 6 diverged, 7 in use by another process, 8 another process of the run is gone, 130 and 143 "
    "stopped by a signal with a checkpoint saved, 141 nobody reads what is printed. "
    "Data and runs are kept in ./data and ./runs, or under LLAMACTL_HOME."
)

# Seconds that others leave the first process to say what is wrong: when it is wrong for all, torchrun ends them meanwhile.
PATIENCE = 2.0

REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE,
}  # fmt: skip

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings={"max_content_width": 100}
)
app.command(rich_help_panel="Start here", epilog="Example: llamactl demo")(demo.demo)
for command, name, example in (
    (prepare.prepare, "prepare", "llamactl prepare sample"),
    (plan.plan, "plan", "llamactl plan --preset 150m --tokens 3B --card rtx4090 --price 0.35/h"),
    (train.train, "train", "llamactl train --tokens 256000"),
    (watch.watch, "watch", "llamactl watch"),
    (plot_loss.plot_loss, "plot-loss", "llamactl plot-loss --x time --out loss.svg"),
    (report.report, "report", "llamactl report a b --out report.html"),
    (sample.sample, "sample", 'llamactl sample "California is " --n 3'),
    (evaluate.evaluate, "eval", "llamactl eval my.txt --run RUN@best"),
    (surprise.surprise, "surprise", 'llamactl surprise "The people of the United States" --out surprise.html'),
):
    app.command(name, rich_help_panel="Pipeline", epilog=f"Example: {example}")(command)
app.add_typer(export.app, name="export", rich_help_panel="Pipeline")
app.add_typer(runs.app, name="runs", rich_help_panel="Care")
app.add_typer(bench.app, name="bench", rich_help_panel="Care")
app.command(rich_help_panel="Care", epilog="Example: llamactl verify data/sample")(verify.verify)
app.command(rich_help_panel="Care", epilog="Example: llamactl doctor")(doctor.doctor)
app.command(rich_help_panel="Care", epilog="Example: llamactl config --preset tiny --section optim")(config.config)


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
    """The console script: errors become three lines and an exit code, tracebacks only with --debug."""
    try:
        app()
    except UserError as error:
        _fail(error.code, error, error.what, error.why, error.fix)
    except KeyboardInterrupt:
        _fail(130, None, "Stopped.")
    except OSError as error:
        _refused(error)
    except Exception as error:  # whatever reaches this line is a bug; people get its name, developers its place
        _fail(1, error, f"A bug in llamactl: {type(error).__name__}: {error}", "", "To see where: llamactl --debug ...")


def _refused(error: OSError) -> None:
    """What the system does not allow is no bug of ours; anything else is."""
    from llamactl.cli.screen import let_go

    if error.errno not in REFUSALS:
        _fail(1, error, f"A bug in llamactl: {type(error).__name__}: {error}", "", "To see where: llamactl --debug ...")
    let_go()
    where = f" at {error.filename}" if error.filename else ""
    fix = "Allow more open files: ulimit -n 4096" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    _fail(NoRoom.code, error, f"The system refused to go on{where}.", f"{error.strerror}.", fix)


def _fail(code: int, error: Exception | None, *lines: str) -> None:
    from llamactl.cli.screen import show_error
    from llamactl.training.launch import launch

    process = launch()
    if not process.leads:
        time.sleep(PATIENCE)
        lines = (f"Process {process.rank} of {process.size}: {lines[0]}", *lines[1:])
    if error and os.environ.get("LLAMACTL_DEBUG"):
        traceback.print_exception(error)
    show_error(*lines)
    sys.exit(code)

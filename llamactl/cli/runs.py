"""llamactl runs: list, show, compare and remove runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llamactl.runs.summary import Comparison, Summary

app = typer.Typer(no_args_is_help=True, help="List, show, compare and remove runs.")
JSON_HELP = "Print JSON on stdout."
COLUMNS = ("run", "state", "data", "step", "loss", "validation", "bits/byte", "time", "size")
MAX_CELL = 40  # characters of a value in `runs diff`


@app.command("list", epilog="Example: llamactl runs list")
def list_runs(json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False) -> None:
    """List all runs, the newest first; losses in nats per token."""
    from llamactl.cli.ui.console import show_list
    from llamactl.runs.summary import summarize_all

    summaries = summarize_all()
    rows = [_cells(summary) for summary in summaries]
    show_list(COLUMNS, rows, summaries if json else None, "run", "llamactl train")


def _cells(summary: "Summary") -> list[str]:
    """Format a summary in the order of COLUMNS."""
    from llamactl.units import show_bytes, show_time

    figures = (summary.loss, summary.validation_loss, summary.bits_per_byte)
    return [
        summary.name,
        summary.describe_condition(),
        summary.dataset,
        f"{summary.step:,}/{summary.steps:,}",
        *("" if figure is None else f"{figure:.3f}" for figure in figures),
        show_time(summary.seconds),
        show_bytes(summary.bytes),
    ]


@app.command(epilog="Example: llamactl runs show")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default="the newest", autocompletion=completion.runs)] = "",
    samples: Annotated[bool, typer.Option("--samples", help="Show its samples of the same prompts over training.")] = False,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Show one run: its progress, results, data and settings."""
    from dataclasses import asdict

    from llamactl.cli.ui.console import show_figures
    from llamactl.runs.run_dir import RunDir
    from llamactl.runs.scores import newest_scores
    from llamactl.runs.summary import describe_disclosure, summarize_run

    folder = RunDir.from_name(run).check_exists()
    if samples:
        show_samples(folder.samples(), json)
        return
    summary, environment = summarize_run(folder), folder.environment()
    rows = {name: value for name, value in zip(COLUMNS, _cells(summary), strict=True) if value}
    rows["started"] = summary.started
    rows["checkpoints"] = ", ".join(f"{step:,}" for step in summary.checkpoints) or "none yet"
    scores = newest_scores(folder)
    if scores:
        shares = ", ".join(f"{test.name} {test.accuracy:.1%}" for test in scores.tests)
        rows["scores"] = f"{shares} (step {scores.step:,}, {scores.data})"
    rows |= {"warning": summary.warning} if summary.warning else {}
    rows |= {"damaged, set aside": ", ".join(summary.set_aside)} if summary.set_aside else {}
    known = ("command", "device", "precision", "threads", "llamactl")
    rows |= {name: str(environment[name]) for name in known if name in environment}
    # For those who share the folder: the command line, the system, the prompts.
    rows["discloses"] = describe_disclosure(folder)
    record = {**asdict(summary), "environment": environment, "scores": scores.model_dump(mode="json") if scores else None}
    show_figures(str(folder.path), rows, record if json else None)


def show_samples(samples: "Mapping[str, Mapping[int, str]]", as_json: bool) -> None:
    """Print each prompt and, below it, the model's samples by step; or a line of JSON for each sample."""
    from rich.text import Text

    from llamactl.cli.ui.console import escape_line, output, show_json

    for prompt, by_step in samples.items():
        if as_json:
            for step, text in sorted(by_step.items()):
                show_json({"prompt": prompt, "step": step, "text": text})
            continue
        output.print(Text(escape_line(prompt), style="bold"))
        for step, text in sorted(by_step.items()):
            output.print(Text.assemble((f"{step:>9,}  ", "dim"), text.strip().replace("\n", " ⏎ ")))


@app.command(epilog="Example: llamactl runs diff first second")
def diff(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more.", autocompletion=completion.runs)],
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Compare runs: the settings that differ, then the results."""
    from dataclasses import asdict

    from rich.text import Text

    from llamactl.cli.ui.console import progress, show_columns, show_figures
    from llamactl.runs.run_dir import RunDir
    from llamactl.runs.summary import compare_runs

    compared = compare_runs([RunDir.from_name(name).check_exists() for name in runs])
    if json:
        show_figures("", {}, asdict(compared))
        return
    # Settings are a table of their own above the results, with an empty row between, so that causes come before effects.
    causes = [[name, *map(_short, values)] for name, values in (compared.settings | compared.environment).items()]
    separator = [[""] * (len(runs) + 1)] if causes else []
    show_columns(("", *compared.names), [*causes, *separator, *_results(compared)])
    if not causes:
        progress.print("Their settings and environments are the same.")
    for caution in compared.cautions:
        progress.print(Text(caution, style="yellow"))


def _results(compared: "Comparison") -> list[list[str]]:
    """Build the rows of results, each with its name and unit first."""
    from llamactl.units import show_bytes, show_time

    figures: dict[str, tuple[str, Callable[[float], str]]] = {
        "step": ("step", "{:,.0f}".format),
        "tokens": ("tokens", "{:,.0f}".format),
        "validation": ("validation, nats per token", "{:.4f}".format),
        "bits_per_byte": ("validation, bits per byte", "{:.4f}".format),
        "best_validation": ("best validation in training, nats per token", "{:.4f}".format),
        "seconds": ("training time", show_time),
        "tokens_per_second": ("tokens per second, median", "{:,.0f}".format),
        "memory": ("peak memory", show_bytes),
    }
    return [
        [label, *("none yet" if value is None else show(value) for value in compared.results[name])]
        for name, (label, show) in figures.items()
    ]


def _short(value: object) -> str:
    """Shorten a long value, such as a digest, for a column; --json prints it in full."""
    text = ", ".join(value) if isinstance(value, tuple) else "-" if value in ("", None) else str(value)
    return text if len(text) <= MAX_CELL else f"{text[:12]}…"


@app.command(epilog="Example: llamactl runs remove my-first --yes")
def remove(
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=completion.runs)],
    yes: Annotated[bool, typer.Option("--yes", help="Confirm: it can't be undone.")] = False,
) -> None:
    """Remove a run permanently; without --yes, print what would be removed."""
    from llamactl.cli.ui.console import progress
    from llamactl.runs import summary
    from llamactl.runs.run_dir import RunDir
    from llamactl.storage.home import require_name
    from llamactl.units import show_bytes

    # Without --yes it raises, with what would be removed and the command that does it.
    removed = summary.remove_run(RunDir.from_name(require_name(run, "llamactl runs remove")), yes)
    progress.print(f"Removed {removed.name}: freed {show_bytes(removed.bytes)}.")

"""llamactl runs: what there is, what became of it, and away with it."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llamactl.runs import Comparison, Summary

app = typer.Typer(no_args_is_help=True, help="List, show and remove runs.")
JSON_HELP = "Print JSON on stdout."
COLUMNS = ("run", "state", "data", "step", "loss", "validation", "bits/byte", "time", "size")
LONGEST_CELL = 40  # characters of a setting in `runs diff`


@app.command("list", epilog="Example: llamactl runs list")
def list_runs(json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False) -> None:
    """All runs, the newest first; losses in nats a token."""
    from dataclasses import asdict
    from json import dumps

    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import output, progress, show_columns, show_next
    from llamactl.runs import summarise

    summaries = [summarise(run) for run in RunDir.all()]
    if json:
        for summary in summaries:
            output.print(dumps(asdict(summary)), markup=False)
    elif summaries:
        show_columns(COLUMNS, [_cells(summary) for summary in summaries])
    else:
        progress.print("There is no run yet.")
        show_next("llamactl train --tokens 256000")


def _cells(summary: "Summary") -> list[str]:
    from llamactl.quantities import show_bytes, show_time

    figures = (summary.loss, summary.validation_loss, summary.bits_per_byte)
    return [
        summary.name,
        summary.condition,
        summary.dataset,
        f"{summary.step:,}/{summary.steps:,}",
        *("" if figure is None else f"{figure:.3f}" for figure in figures),
        show_time(summary.seconds),
        show_bytes(summary.bytes),
    ]


@app.command(epilog="Example: llamactl runs show")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default="the newest", autocompletion=completion.runs)] = "",
    samples: Annotated[bool, typer.Option("--samples", help="What it made of the same prompts, step by step.")] = False,
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """One run: how far it is, how good, on what, with which settings."""
    from dataclasses import asdict

    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import show_figures
    from llamactl.runs import summarise

    folder = RunDir.named(run).existing()
    if samples:
        show_samples(folder.samples(), json)
        return
    summary, made_with = summarise(folder), folder.environment()
    rows = {name: value for name, value in zip(COLUMNS, _cells(summary), strict=True) if value}
    rows["started"] = summary.started
    rows["checkpoints"] = ", ".join(f"{step:,}" for step in summary.checkpoints) or "none yet"
    known = ("command", "device", "precision", "threads", "llamactl")
    rows |= {name: str(made_with[name]) for name in known if name in made_with}
    show_figures(str(folder.path), rows, {**asdict(summary), "environment": made_with} if json else None)


def show_samples(samples: "Mapping[str, Mapping[int, str]]", as_json: bool) -> None:
    """A film strip: each prompt, and below it what the model made of it as it learned."""
    from json import dumps

    from rich.text import Text

    from llamactl.cli.screen import output
    from llamactl.spelling import safe

    for prompt, said in samples.items():
        if as_json:
            for step, text in sorted(said.items()):
                output.print(dumps({"prompt": prompt, "step": step, "text": text}), markup=False)
            continue
        output.print(Text(safe(prompt), style="bold"))
        for step, text in sorted(said.items()):
            output.print(Text.assemble((f"{step:>9,}  ", "dim"), safe(text).strip().replace("\n", " ⏎ ")))


@app.command(epilog="Example: llamactl runs diff first second")
def diff(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more.", autocompletion=completion.runs)],
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Runs beside each other: the settings that differ, then what came of them."""
    from dataclasses import asdict

    from rich.text import Text

    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import progress, show_columns, show_figures
    from llamactl.runs import compare

    compared = compare([RunDir.named(name).existing() for name in runs])
    if json:
        show_figures("", {}, asdict(compared))
        return
    causes = [[name, *map(_short, values)] for name, values in (compared.settings | compared.environment).items()]
    apart = [[""] * (len(runs) + 1)] if causes else []
    show_columns(("", *compared.names), [*causes, *apart, *_results(compared)])
    if not causes:
        progress.print("Their settings and what they were made with are the same.")
    for caution in compared.cautions:
        progress.print(Text(caution, style="yellow"))


def _results(compared: "Comparison") -> list[list[str]]:
    """The cells of what came of runs, each row with its name and its unit in front."""
    from llamactl.quantities import show_bytes, show_time

    figures: dict[str, tuple[str, Callable[[float], str]]] = {
        "step": ("step", "{:,.0f}".format),
        "tokens": ("tokens", "{:,.0f}".format),
        "validation": ("validation, nats per token", "{:.4f}".format),
        "bits_per_byte": ("validation, bits per byte", "{:.4f}".format),
        "best_validation": ("best validation, nats per token", "{:.4f}".format),
        "seconds": ("training time", show_time),
        "tokens_per_second": ("tokens per second, median", "{:,.0f}".format),
        "memory": ("peak memory", show_bytes),
    }
    return [
        [label, *("none yet" if value is None else show(value) for value in compared.results[name])]
        for name, (label, show) in figures.items()
    ]


def _short(value: object) -> str:
    """A setting in a column; what is longer, such as a digest, is whole in the JSON."""
    text = ", ".join(value) if isinstance(value, tuple) else "-" if value in ("", None) else str(value)
    return text if len(text) <= LONGEST_CELL else f"{text[:12]}…"


@app.command(epilog="Example: llamactl runs remove my-first --yes")
def remove(
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=completion.runs)],
    yes: Annotated[bool, typer.Option("--yes", help="It is meant: there is no way back.")] = False,
) -> None:
    """Remove a run for good; without --yes, say what would go."""
    from llamactl import runs
    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import progress
    from llamactl.quantities import show_bytes
    from llamactl.spelling import safe

    gone = runs.remove(RunDir.named(run), yes)
    progress.print(f"Removed {safe(gone.name)}: {show_bytes(gone.bytes)} are free again.", markup=False)

"""llamactl runs: what there is, what became of it, and away with it."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamactl.runs import Summary

app = typer.Typer(no_args_is_help=True, help="List, show and remove runs.")
JSON_HELP = "Print JSON on stdout."
COLUMNS = ("run", "state", "data", "step", "loss", "validation", "bits/byte", "time", "size")


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
    run: Annotated[str, typer.Argument(metavar="RUN", show_default="the newest")] = "",
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


@app.command(epilog="Example: llamactl runs remove my-first --yes")
def remove(
    run: Annotated[str, typer.Argument(metavar="RUN")],
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

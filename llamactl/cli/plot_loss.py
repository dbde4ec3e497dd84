"""llamactl plot-loss: draw the loss curves of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.hints import sample_next

if TYPE_CHECKING:
    from llamactl.runs.summary import Summary

REFERENCE_HELP = "Grey lines to compare with: notebook, gpt2 (124M, on OpenWebText), none; repeatable."


def plot_loss(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="One or more runs.", show_default="the newest", autocompletion=completion.runs),
    ] = None,
    x: Annotated[Literal["step", "tokens", "time", "flops"], typer.Option(help="Unit of the x axis.")] = "tokens",
    out: Annotated[Path | None, typer.Option(help="A .png, .svg or .pdf.", show_default="loss.png in the run")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=REFERENCE_HELP, show_default="both for openwebtext, else none"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the final losses as JSON.")] = False,
) -> None:
    """Draw the loss of one or more runs."""
    from llamactl.cli.ui.console import output, progress, show_json, show_next, suggest_out
    from llamactl.report.baselines import choose_baselines, reads_their_text
    from llamactl.report.plots import draw_plot, is_visible, read_curve, sketch_plot
    from llamactl.runs.run_dir import RunDir
    from llamactl.runs.summary import summarize_run

    folders = [RunDir.from_name(name).check_exists() for name in runs or [""]]
    curves = [read_curve(folder, x) for folder in folders]
    # The picture of several runs is written into the folder of the first.
    picture = out or folders[0].loss_path
    references = choose_baselines(reference or [], folders[0])
    shown = [baseline for baseline in references if is_visible(baseline, curves, x)]
    with suggest_out(out, picture):
        draw_plot(curves, x, picture, shown)
    summaries = [summarize_run(folder) for folder in folders]
    for curve, summary in zip(curves, summaries, strict=True):
        progress.print(f"{curve.name}: train {curve.smooth[-1]:.3f} nats per token{describe_validation(summary)}")
        progress.print(sketch_plot(curve, x, width=min(64, progress.width - 12)))
    for baseline in references:
        if baseline not in shown:
            progress.print(f"Not drawn, as it starts after these runs end: {baseline.label}", style="dim")
    # Losses on different texts are not comparable.
    if shown and not reads_their_text(folders[0]):
        progress.print("The grey lines are for OpenWebText; these runs were trained on another text.", style="yellow")
    if json:
        both = zip(curves, summaries, strict=True)
        ends = [{"run": curve.name, "loss": float(curve.loss[-1]), "validation": run.validation_loss} for curve, run in both]
        show_json({"picture": str(picture), "runs": ends, "references": [baseline.label for baseline in shown]})
    else:
        output.print(str(picture))
    show_next(sample_next(folders[0]))


def describe_validation(summary: "Summary") -> str:
    """Describe the validation loss that `train` and `sample` name too, and on how many tokens; empty where there is none."""
    from llamactl.units import show_loss

    if summary.validation_loss is None:
        return ""
    tokens = f" (on {summary.eval_tokens:,} held-out tokens)" if summary.eval_tokens else ""
    return f", validation {show_loss(summary.validation_loss, summary.loss_error)}{tokens}"

"""llamactl plot-loss: metrics become a picture."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl.cli import completion

REFERENCE_HELP = "Grey lines to hold it against: notebook, gpt2 (124M, on OpenWebText), none; repeatable."


def plot_loss(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="One or several.", show_default="the newest", autocompletion=completion.runs),
    ] = None,
    x: Annotated[Literal["step", "tokens", "time", "flops"], typer.Option(help="What the loss is drawn against.")] = "tokens",
    out: Annotated[Path | None, typer.Option(help="A .png, .svg or .pdf.", show_default="loss.png in the run")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=REFERENCE_HELP, show_default="both for openwebtext, else none"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the curves' ends as JSON.")] = False,
) -> None:
    """Draw the loss of one or several runs."""
    from json import dumps

    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import output, progress, show_next
    from llamactl.plots import draw, in_sight, read_curve, sketch
    from llamactl.references import choose, reads_their_text
    from llamactl.spelling import safe

    folders = [RunDir.named(name).existing() for name in runs or [""]]
    curves = [read_curve(folder, x) for folder in folders]
    picture = out or folders[0].loss_path
    references = choose(reference or [], folders[0])
    shown = [known for known in references if in_sight(known, curves, x)]
    draw(curves, x, picture, shown)
    for curve in curves:
        validation = f", validation {curve.validation[-1]:.3f}" if curve.validation else ""
        progress.print(f"{safe(curve.name)}: train {curve.smooth[-1]:.3f}{validation} nats per token", markup=False)
        progress.print(sketch(curve, x, width=min(64, progress.width - 12)), markup=False)
    for known in references:
        if known not in shown:
            progress.print(f"Not drawn, it starts after these runs end: {known.label}", style="dim", markup=False)
    if shown and not reads_their_text(folders[0]):
        progress.print("The grey lines are of OpenWebText; these runs read another text.", style="yellow")
    if json:
        ends = [{"run": c.name, "loss": c.loss[-1], "validation": c.validation[-1] if c.validation else None} for c in curves]
        output.print(
            dumps({"picture": str(picture), "runs": ends, "references": [known.label for known in shown]}), markup=False
        )
    else:
        output.print(str(picture), markup=False)
    show_next('llamactl sample "California is "')

"""llamactl demo: prepare, train, plot and sample in minutes, on any machine, without a network."""

from typing import Annotated

import typer

# Takes minutes on a CPU: 2M tokens, three quarters of an epoch, for a model of 2.4M parameters.
TRAINING = "train --data sample --preset tiny --tokens {tokens} --set train.tokens_per_step=2048 --set train.eval_tokens=95_000"


def demo(tokens: Annotated[str, typer.Option(help="Budget of the training.")] = "2M") -> None:
    """Prepare, train, plot and sample on the embedded corpus, in minutes."""
    from llamactl.cli.steps import run_step
    from llamactl.cli.ui.console import progress, show_next

    for command in (
        "prepare sample",
        TRAINING.format(tokens=tokens),
        "plot-loss",
        'sample "California is " --max-new-tokens 120',
    ):
        run_step(command)
    progress.print(
        "\n[bold]That is your own Llama.[/] Its loss curve is the picture above, its weights are in runs/.", markup=True
    )
    show_next("llamactl quickstart FILES --time 10m", why="The same for your own text")

"""llamactl demo: the whole path in a few minutes, on any machine, without a network."""

import shlex
import subprocess
import sys
from typing import Annotated

import typer

# What a model of 2.4M parameters learns from in the time a person waits: 2M tokens, two thirds of an epoch.
TRAINING = "train --data sample --preset tiny --tokens {tokens} --set train.tokens_per_step=2048 --set train.eval_tokens=95_000"


def demo(tokens: Annotated[str, typer.Option(help="Budget of the training.")] = "2M") -> None:
    """Prepare, train, plot and sample on the embedded corpus, in minutes."""
    from llamactl.cli.screen import progress, show_next
    from llamactl.errors import UserError

    for words in (
        "prepare sample",
        TRAINING.format(tokens=tokens),
        "plot-loss",
        'sample "California is " --max-new-tokens 120',
    ):
        progress.print(f"\n[dim]$[/] [bold cyan]llamactl {words}[/]")
        code = subprocess.run([sys.executable, "-m", "llamactl", *shlex.split(words)], check=False).returncode
        if code:
            raise UserError("The demo stopped at the command above.", f"It ended with exit code {code}.")
    progress.print("\n[bold]That is your own Llama.[/] Its loss curve is the picture above, its weights are in runs/.")
    show_next("llamactl prepare openwebtext --max-tokens 3B && llamactl train --tokens 3B", why="The real thing, on a GPU")

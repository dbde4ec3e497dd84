"""llamactl export: write a checkpoint in the formats of other programs."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.options import MODEL_HELP
from llamactl.cli.preconditions import import_torch, require_run

app = typer.Typer(no_args_is_help=True, help="Write a checkpoint for other programs, and verify the result.")
OUT_HELP = "Folder to write into; files that were added or edited there are kept."


@app.command(epilog="Example: llamactl export gguf RUN@best --type q8_0")
def gguf(
    run: Annotated[str, typer.Argument(help=MODEL_HELP, show_default="the newest", autocompletion=completion.checkpoints)] = "",
    kind: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--type", help="Number format of the weights.")
    ] = "bf16",
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("exports"),
) -> None:
    """Write one file for llama.cpp, Ollama and LM Studio, and a Modelfile."""
    require_run(run)
    import_torch()
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.checkpoint.huggingface import read_chat_template
    from llamactl.cli.ui.console import show_next
    from llamactl.export.gguf import export_gguf, modelfile_path

    # A run that is training may prune the checkpoint meanwhile; then it is found by its name again.
    written, chats = checkpoint_select.retry_while_pruned(
        run, lambda path: (export_gguf(path, out, kind), bool(read_chat_template(path)))
    )
    _show_result(written)
    how = ["-cnv"] if chats else ["-p", "California is"]
    llama = shlex.join(["llama-cli", "-m", str(written), *how])
    show_next(f"{llama}   or   {shlex.join(['ollama', 'create', 'mine', '-f', str(modelfile_path(written))])}")


@app.command(epilog="Example: llamactl export hf RUN@best")
def hf(
    run: Annotated[str, typer.Argument(help=MODEL_HELP, show_default="the newest", autocompletion=completion.checkpoints)] = "",
    kind: Annotated[Literal["f32", "f16", "bf16"], typer.Option("--type", help="Number format of the weights.")] = "bf16",
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("exports"),
) -> None:
    """Write a Hugging Face folder, smaller than a checkpoint, with a model card."""
    require_run(run)
    import_torch()
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.cli.ui.console import progress, show_next
    from llamactl.export.huggingface import export_hf

    written = checkpoint_select.retry_while_pruned(run, lambda path: export_hf(path, out, kind))
    _show_result(written)
    # A model card may disclose names and paths that its author did not mean to publish.
    progress.print(
        "README.md contains the names of the run and its dataset and the command line; check it before you share.", style="dim"
    )
    show_next(shlex.join(["hf", "upload", "NAME", str(written)]), why="Share")


@app.command(epilog="Example: llamactl export web RUN@best --checkpoints 8")
def web(
    run: Annotated[str, typer.Argument(help=MODEL_HELP, show_default="the newest", autocompletion=completion.checkpoints)] = "",
    kind: Annotated[Literal["int8", "int4"], typer.Option("--type", help="Number format of the weights.")] = "int8",
    checkpoints: Annotated[
        int, typer.Option(min=1, max=1_000, help="Checkpoints of the run in the page, from all over it, with a slider.")
    ] = 1,
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("exports"),
) -> None:
    """Write one HTML page that holds the model and writes with it: no network, no server."""
    require_run(run)
    import_torch()
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.cli.ui.console import progress, show_next
    from llamactl.export.web import export_web

    written = checkpoint_select.retry_while_pruned(run, lambda path: export_web(path, out, kind, checkpoints))
    _show_result(written)
    # As its first prompt: the words of a private text would be published.
    progress.print(
        "The page contains the names of the run and its dataset and how a held-out document begins; check before you share.",
        style="dim",
    )
    show_next(str(written), why="Open in any browser, also without a network")


def _show_result(written: Path) -> None:
    """Print the path of an export on stdout, so that it can be piped, and its size on stderr."""
    from llamactl.cli.ui.console import output, progress
    from llamactl.units import show_bytes

    files = written.iterdir() if written.is_dir() else [written]
    size = show_bytes(sum(file.stat().st_size for file in files))
    progress.print(f"{size}, verified against the checkpoint", style="dim")
    output.print(str(written))

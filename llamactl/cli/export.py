"""llamactl export: a checkpoint for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl.cli import completion

app = typer.Typer(no_args_is_help=True, help="Write a checkpoint for other programs, and check what was written.")
RUN_HELP = "RUN, RUN@STEP, RUN@best or a checkpoint's folder."
OUT_HELP = "Folder to write into."


@app.command(epilog="Example: llamactl export gguf RUN@best --type q8_0")
def gguf(
    run: Annotated[str, typer.Argument(help=RUN_HELP, show_default="the newest", autocompletion=completion.checkpoints)] = "",
    kind: Annotated[Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--type", help="How numbers are stored.")] = "bf16",
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("exports"),
) -> None:
    """One file for llama.cpp, Ollama and LM Studio, and a Modelfile."""
    from llamactl import checkpoint
    from llamactl.cli.screen import show_next
    from llamactl.inference.gguf import export

    written = export(checkpoint.locate(run), out, kind)
    _say(written)
    show_next(f"llama-cli -m {written} -p 'California is'   or   ollama create mine -f {written.parent / 'Modelfile'}")


@app.command(epilog="Example: llamactl export hf RUN@best")
def hf(
    run: Annotated[str, typer.Argument(help=RUN_HELP, show_default="the newest", autocompletion=completion.checkpoints)] = "",
    kind: Annotated[Literal["f32", "f16", "bf16"], typer.Option("--type", help="How numbers are stored.")] = "bf16",
    out: Annotated[Path, typer.Option(help=OUT_HELP)] = Path("exports"),
) -> None:
    """A Hugging Face folder, smaller than a checkpoint, with a model card."""
    from llamactl import checkpoint
    from llamactl.cli.screen import show_next
    from llamactl.inference.release import export

    written = export(checkpoint.locate(run), out, kind)
    _say(written)
    show_next(f"hf upload NAME {written}", why="To share it")


def _say(written: Path) -> None:
    """Where it is, on stdout, and how big."""
    from llamactl.cli.screen import output, progress
    from llamactl.quantities import show_bytes

    files = written.iterdir() if written.is_dir() else [written]
    size = show_bytes(sum(file.stat().st_size for file in files))
    progress.print(f"{size}, read again and compared with the checkpoint", style="dim")
    output.print(str(written), markup=False)

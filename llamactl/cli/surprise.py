"""llamactl surprise: show how well a model predicts each token of a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion
from llamactl.cli.options import MODEL_HELP, DeviceName
from llamactl.cli.preconditions import import_torch, require_run

if TYPE_CHECKING:
    from llamactl.inference.surprisal import Piece

COMPARE_HELP = "Show the change since this checkpoint."
TEXT_HELP = "A text or a text file; left out or -: stdin."
LITERAL_HELP = "A text that is never read as a file name."


def surprise(
    text: Annotated[str | None, typer.Argument(help=TEXT_HELP, show_default=False)] = None,
    literal: Annotated[str | None, typer.Option("--text", metavar="TEXT", help=LITERAL_HELP, show_default=False)] = None,
    run: Annotated[
        str,
        typer.Option(
            help=MODEL_HELP,
            show_default="the newest",
            autocompletion=completion.checkpoints,
        ),
    ] = "",
    compare: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help=COMPARE_HELP, show_default=False, autocompletion=completion.checkpoints)
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write an HTML page, with the expected tokens.", show_default=False)] = None,
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print each piece of the text as a line of JSON.")] = False,
) -> None:
    """Color each piece of a text by its surprisal under the model."""
    require_run(run)
    import_torch()
    from llamactl.cli.ui.console import output, progress
    from llamactl.inference.surprisal_page import render_page
    from llamactl.storage import atomic

    content = read_text_argument(text, literal)
    title, pieces = measure_checkpoint(content, run, device)
    since, before = measure_checkpoint(content, compare, device) if compare else ("", [])
    # Bits can be compared only piece by piece, so both tokenizers must split the text alike.
    if [piece.text for piece in before] not in ([], [piece.text for piece in pieces]):
        from llamactl.errors import DataError

        raise DataError(f"{compare} and the other checkpoint split this text differently.", "They have different tokenizers.")
    if json:
        show_pieces(pieces, before)
    elif out is None:
        show_surprisal(title, pieces, since, before)
    if out is not None:
        atomic.write_file(out, render_page(f"{title} since {since}" if since else title, pieces, before))
        # stdout has the JSON already, so the path goes to stderr.
        (progress if json else output).print(str(out))


def read_text_argument(text: str | None, literal: str | None) -> str:
    """Read the text: --text, an argument, a file or stdin; raises UsageError for none, DataError for an empty one."""
    from llamactl.errors import DataError, UsageError
    from llamactl.inference.text_arguments import check_literal, read_argument, read_piped

    if text is not None and literal is not None:
        raise UsageError("There are two texts.", "TEXT and --text exclude each other.")
    if literal is not None:
        content: str | None = check_literal(literal)
    else:
        content = read_piped() if text is None else read_argument(text)
    if content is None or "" in (text, literal):
        raise UsageError("There is no text.", "", 'Example: llamactl surprise "The people of the United States"')
    if not content.strip():
        raise DataError("There is nothing to measure.", "The text is empty or has only spaces.")
    return content


def show_pieces(pieces: list["Piece"], before: list["Piece"]) -> None:
    """Print a line of JSON for each piece, with its earlier bits where two checkpoints are compared."""
    from llamactl.cli.ui.console import show_json

    for number, piece in enumerate(pieces):
        record = {"text": piece.text, "bits": piece.bits, "expected": piece.expected}
        show_json(record | ({"bits_before": before[number].bits} if before else {}))


def measure_checkpoint(text: str, name: str, device: str) -> tuple[str, list["Piece"]]:
    """Measure a text with a checkpoint; return the checkpoint's title and the pieces."""
    from llamactl.checkpoint import io as checkpoint_io
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.hardware.device import choose_device
    from llamactl.inference.surprisal import measure_surprisal

    path, model, tokenizer, state = checkpoint_io.open_model(name, choose_device(device))
    return checkpoint_select.describe_model(path, state), measure_surprisal(model, tokenizer, text)


def show_surprisal(title: str, pieces: list["Piece"], since: str, before: list["Piece"]) -> None:
    """Print the text in colours on stdout, and its bits per byte on stderr."""
    from rich.text import Text

    from llamactl.cli.ui.console import output, progress
    from llamactl.inference.surprisal import bits_per_byte

    changed = [piece.bits - other.bits for piece, other in zip(pieces, before, strict=True)] if before else []
    shown = Text()
    for number, piece in enumerate(pieces):
        shown.append(piece.text, style=_style(changed[number] if changed else piece.bits, bool(changed)))
    output.print(shown)
    legend = "blue: less surprisal than before, orange: more" if changed else "orange: surprisal, full color from 10 bits"
    earlier = f", {bits_per_byte(before):.3f} at {since}" if before else ""
    progress.print(f"{title}: {bits_per_byte(pieces):.3f} bits per byte{earlier} ({legend})", style="dim")


def _style(bits: float, change: bool) -> str:
    """Choose the style for a number of bits: a background from pale to full colour at 10 bits, with black text."""
    share = max(-1.0, min(1.0, bits / 10))
    # Below one bit, and without --compare for a negative number, there is nothing to point out.
    if abs(share) < 0.1 or (not change and share < 0):
        return ""
    # Orange for more bits, blue for fewer.
    full = (230, 130, 50) if share > 0 else (90, 160, 220)
    pale = (250, 225, 195) if share > 0 else (205, 225, 245)
    mixed = [round(low + (high - low) * abs(share)) for low, high in zip(pale, full, strict=True)]
    return f"black on rgb({mixed[0]},{mixed[1]},{mixed[2]})"

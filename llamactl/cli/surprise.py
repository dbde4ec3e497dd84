"""llamactl surprise: a text as the model reads it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion
from llamactl.cli.settings import DeviceName

if TYPE_CHECKING:
    from llamactl.inference.surprise import Piece

COMPARE_HELP = "Show what changed since this one."
TEXT_HELP = "A text, or the name of a .txt file; left out or -: what comes on stdin."


def surprise(
    text: Annotated[str, typer.Argument(help=TEXT_HELP, show_default=False)] = "-",
    run: Annotated[
        str,
        typer.Option(
            help="RUN, RUN@STEP, RUN@best or a checkpoint's folder.",
            show_default="the newest",
            autocompletion=completion.checkpoints,
        ),
    ] = "",
    compare: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help=COMPARE_HELP, show_default=False, autocompletion=completion.checkpoints)
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write an HTML page, with what was expected.", show_default=False)] = None,
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print each piece as a line of JSON.")] = False,
) -> None:
    """Colour a text by how surprised the model is at each of its pieces."""
    from json import dumps

    from llamactl import durable
    from llamactl.cli.screen import output
    from llamactl.inference.surprise_page import page

    content = read(text)
    title, pieces = measured(content, run, device)
    since, before = measured(content, compare, device) if compare else ("", [])
    if [piece.text for piece in before] not in ([], [piece.text for piece in pieces]):
        from llamactl.errors import BadData

        raise BadData(f"{compare} and the other checkpoint cut this text differently.", "They have different tokenizers.")
    if json:
        for piece in pieces:
            output.print(dumps({"text": piece.text, "bits": piece.bits, "expected": piece.expected}), markup=False)
    elif out is None:
        show(title, pieces, since, before)
    if out is not None:
        durable.write(out, page(f"{title} since {since}" if since else title, pieces, before))
        output.print(str(out), markup=False)


def read(text: str) -> str:
    """What was typed, what a file holds, or what comes on stdin; raises BadUsage where there is nothing."""
    from llamactl.errors import BadUsage

    found = text
    if text == "-":
        found = "" if sys.stdin.isatty() else sys.stdin.read()
    elif text.endswith(".txt") and Path(text).is_file():
        found = Path(text).read_text("utf-8", errors="replace")
    if not found:
        raise BadUsage("There is no text.", "", 'Example: llamactl surprise "The people of the United States"')
    return found


def measured(text: str, name: str, device: str) -> tuple[str, list["Piece"]]:
    """A checkpoint in words, and what it makes of a text."""
    from llamactl import checkpoint
    from llamactl.inference.surprise import surprise as pieces_of
    from llamactl.model.device import choose_device

    path = checkpoint.locate(name)
    model, tokenizer, state = checkpoint.load_model(path, choose_device(device))
    return f"{path.absolute().parents[1].name} at step {state.step:,}", pieces_of(model, tokenizer, text)


def show(title: str, pieces: list["Piece"], since: str, before: list["Piece"]) -> None:
    """The text in colours, and the number that sums it up."""
    from rich.text import Text

    from llamactl.cli.screen import output, progress
    from llamactl.inference.surprise import bits_per_byte
    from llamactl.spelling import safe

    changed = [piece.bits - other.bits for piece, other in zip(pieces, before, strict=True)] if before else []
    shown = Text()
    for number, piece in enumerate(pieces):
        shown.append(safe(piece.text), style=_style(changed[number] if changed else piece.bits, bool(changed)))
    output.print(shown)
    legend = "blue: less surprised than before, orange: more" if changed else "orange: surprised, 10 bits and more in full"
    was = f", {bits_per_byte(before):.3f} at {since}" if before else ""
    progress.print(f"{safe(title)}: {bits_per_byte(pieces):.3f} bits per byte{safe(was)} ({legend})", markup=False, style="dim")


def _style(bits: float, change: bool) -> str:
    """A background between none and the full colour, in black on it; nothing where there is nothing to show."""
    share = max(-1.0, min(1.0, bits / 10))
    if abs(share) < 0.1 or (not change and share < 0):
        return ""
    full = (230, 130, 50) if share > 0 else (90, 160, 220)
    pale = (250, 225, 195) if share > 0 else (205, 225, 245)
    mixed = [round(low + (high - low) * abs(share)) for low, high in zip(pale, full, strict=True)]
    return f"black on rgb({mixed[0]},{mixed[1]},{mixed[2]})"

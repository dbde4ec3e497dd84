"""Show the preparation of conversations: progress, and what the dataset holds."""

from collections.abc import Iterator

from rich.progress import Progress, SpinnerColumn, TextColumn

from llamactl.cli.ui.console import progress, show_table
from llamactl.cli.ui.preparation import show_skipped
from llamactl.corpus.chat_dataset import Packed, Packing
from llamactl.corpus.dataset import DatasetDir
from llamactl.units import show_count


def show_packing(events: Iterator[Packing | Packed], folder: DatasetDir) -> None:
    """Show progress on stderr until the dataset is complete, then its summary."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=progress, transient=True) as bar:
        task = bar.add_task("reading conversations")
        for event in events:
            match event:
                case Packing(read=read, skipped=skipped, tokens=tokens):
                    text = f"{show_count(read)} conversations{show_skipped(skipped, {})}, {show_count(tokens)} tokens"
                    bar.update(task, description=text)
                case Packed():
                    bar.stop()
                    show_packed(event, folder)


def show_packed(packed: Packed, folder: DatasetDir) -> None:
    """Print what a dataset of conversations holds."""
    info = packed.info
    width = info.recipe.row_tokens
    written = info.total("train", "documents") + info.total("val", "documents")
    rows = {split: info.total(split, "tokens") // width for split in ("train", "val")}
    cut = f", {packed.cut:,} cut to fit" if packed.cut else ""
    filled = f", {packed.filled:.0%} filled" if packed.filled else ""
    show_table(
        f"{folder.path} {'was complete already' if packed.kept else 'is complete'}",
        {
            "conversations": f"{info.documents_read:,} read, {written:,} written"
            + f"{show_skipped(info.skipped, info.skipped_bytes)}{cut}",
            "train": f"{rows['train']:,} rows of {width:,} tokens{filled}",
            **({"text": f"{packed.text_rows:,} of these rows, against forgetting"} if packed.text_rows else {}),
            "validation": f"{rows['val']:,} rows of {info.total('val', 'documents'):,} conversations",
        },
    )

"""llamactl data: list, show and remove datasets."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

    from llamactl.corpus.catalog import DatasetSummary, DocumentStatistics
    from llamactl.corpus.dataset import Dataset
    from llamactl.tokenizer.bpe import Tokenizer

app = typer.Typer(no_args_is_help=True, help="List, show and remove datasets.")
JSON_HELP = "Print JSON on stdout."
COLUMNS = ("dataset", "state", "documents", "train tokens", "held out", "text", "tokenizer", "ids", "size")
SHOWN_TOKENS = 160
TOKEN_STYLES = ("black on bright_cyan", "black on bright_yellow")


@app.command("list", epilog="Example: llamactl data list")
def list_datasets(json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False) -> None:
    """List all datasets, the newest first, also unfinished ones."""
    from llamactl.cli.ui.console import show_list
    from llamactl.corpus.catalog import summarize_datasets

    summaries = summarize_datasets()
    show_list(
        COLUMNS, [_cells(summary) for summary in summaries], summaries if json else None, "dataset", "llamactl prepare sample"
    )


def _cells(summary: "DatasetSummary") -> list[str]:
    """Format a summary in the order of COLUMNS."""
    from llamactl.units import show_bytes, show_count

    counts = (summary.tokens, summary.val_tokens)
    return [
        summary.name,
        summary.state,
        f"{summary.documents:,}" if summary.documents else "",
        *(show_count(count) if count else "" for count in counts),
        show_bytes(summary.text_bytes) if summary.text_bytes else "",
        summary.tokenizer,
        f"{summary.vocab_size:,}" if summary.vocab_size else "",
        show_bytes(summary.bytes),
    ]


@app.command(epilog="Example: llamactl data show sample")
def show(
    name: Annotated[str, typer.Argument(metavar="DATASET", show_default="the newest", autocompletion=completion.datasets)] = "",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Show one dataset: its documents, their lengths and duplicates, and a text with its tokens in colors."""
    from dataclasses import asdict

    from llamactl.cli.ui.console import output, show_figures, show_next
    from llamactl.corpus.catalog import measure_documents, summarize_dataset
    from llamactl.corpus.dataset import DatasetDir

    folder = DatasetDir.from_name(name)
    dataset = folder.open()
    summary, statistics = summarize_dataset(folder), measure_documents(dataset)
    rows = dict(zip(COLUMNS, _cells(summary), strict=True)) | describe_documents(dataset, statistics)
    record = {**asdict(summary), "statistics": asdict(statistics), "info": dataset.info.model_dump(mode="json")}
    show_figures(str(folder.path), rows, record if json else None)
    if json:
        return
    output.print(colour_tokens(dataset.tokenizer, first_document(dataset)))
    if not dataset.info.recipe.row_tokens:
        show_next(f"llamactl train --data {dataset.name}")


def describe_documents(dataset: "Dataset", statistics: "DocumentStatistics") -> dict[str, str]:
    """Describe a dataset's recipe and the statistics of its documents in rows of names and values."""
    info = dataset.info
    text_bytes = sum(shard.text_bytes for shard in info.shards)
    tokens = sum(shard.tokens for shard in info.shards)
    share = "all" if statistics.complete else "the first"
    lengths = "  ".join(f"{percent} %: {length:,}" for percent, length in statistics.lengths.items())
    rows = {
        "source": info.recipe.source + (f", mixed {info.recipe.weights}" if info.recipe.weights else ""),
        "bytes per token": f"{text_bytes / max(1, tokens):.2f}",
        "measured": f"{statistics.documents:,} documents, {share} {statistics.tokens:,} tokens",
        "lengths": f"{lengths}  (so many documents have at most so many tokens)",
        "repeated": f"{statistics.repeated:,} documents repeat an earlier one",
        "unused ids": f"{statistics.unused_ids:,} of {info.vocab_size:,} occur in none of them",
        "skipped": ", ".join(f"{count:,} {reason}" for reason, count in info.skipped.items() if count) or "none",
        "digest": info.digest[:16],
    }
    if statistics.repeated and not info.recipe.row_tokens:
        rows["repeated"] += "; to leave them out: llamactl prepare --dedup"
    if statistics.leaked:
        rows["leaked"] = f"{statistics.leaked:,} held-out documents are in the training split too: validation is too good"
    return rows


def first_document(dataset: "Dataset") -> "np.ndarray":
    """Read the beginning of the first document."""
    import numpy as np

    from llamactl.corpus.memmap import read_tokens

    # A long document has no end among the first tokens.
    shards = dataset.train if len(dataset.train) else dataset.val
    ids = read_tokens(shards, 0, 0, SHOWN_TOKENS)
    ends = np.flatnonzero(ids == dataset.tokenizer.end)
    return ids[: ends[0]] if len(ends) and ends[0] else ids


def colour_tokens(tokenizer: "Tokenizer", ids: "np.ndarray") -> "Text":
    """Format a text so that each token has another colour than its neighbours; tokens that share a character are one."""
    from rich.text import Text

    from llamactl.escape import escape_control_chars

    text, held, number = Text(), b"", 0
    for place, token in enumerate(ids.tolist(), start=1):
        held += tokenizer.decode_bytes([token])
        try:
            piece = held.decode()
        except UnicodeDecodeError:
            if place < len(ids):
                continue
            piece = held.decode(errors="replace")
        text.append(escape_control_chars(piece).replace("\n", "⏎\n"), style=TOKEN_STYLES[number % len(TOKEN_STYLES)])
        held, number = b"", number + 1
    return text


@app.command(epilog="Example: llamactl data remove sample --yes")
def remove(
    name: Annotated[str, typer.Argument(metavar="DATASET", autocompletion=completion.datasets)],
    yes: Annotated[bool, typer.Option("--yes", help="Confirm: it can't be undone.")] = False,
) -> None:
    """Remove a dataset permanently; without --yes, print what would be removed."""
    from llamactl.cli.ui.console import progress
    from llamactl.corpus.catalog import remove_dataset
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.errors import DataError, InUse
    from llamactl.runs.summary import summarize_all
    from llamactl.storage.home import require_name
    from llamactl.units import show_bytes

    folder = DatasetDir.from_name(require_name(name, "llamactl data remove"))
    if not folder.path.is_dir():
        raise DataError(f"There is no dataset {name!r}.", "", "See what there is: llamactl data list")
    runs = [run for run in summarize_all() if run.dataset == folder.path.name]
    if training := [run.name for run in runs if run.condition == "running"]:
        raise InUse(f"The run {training[0]} is training on {name}.", "", "Wait for it, or stop it.")
    # Without --yes it raises, with what would be removed and the command that does it.
    removed = remove_dataset(folder, yes, [run.name for run in runs])
    progress.print(f"Removed {removed.name}: freed {show_bytes(removed.bytes)}.")

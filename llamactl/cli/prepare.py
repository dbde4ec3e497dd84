"""llamactl prepare: tokenize text into shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llamactl.corpus.dataset import DatasetDir
    from llamactl.corpus.dataset_info import DatasetInfo
    from llamactl.corpus.prepare import Event, Share, TokenizerReady
    from llamactl.corpus.sources import Source

# Headings of the groups of options in --help.
DATASET, FILTERING, EXECUTION, OUTPUT = "Dataset", "Filtering", "Execution", "Output"

# Below so many bytes of input, starting more processes takes longer than the work.
SMALL = 32 << 20

SOURCES_HELP = (
    "openwebtext, sample, hf:org/name[:config], or files, folders and globs: .txt .md .rst .jsonl .ndjson .json .csv .tsv "
    ".parquet .arrow .feather, text also as .gz .zst .xz .bz2, folders of save_to_disk."
)
SPLIT_HELP = (
    "Where a document of a text file ends: auto, files, paragraphs, lines, chunks, a separator like '<|endoftext|>', re:REGEX."
)
TOKENIZER_HELP = "gpt2, bpe:N (learned from the source), bytes, a tokenizer.json, or that of a MODEL: RUN, folder, hf:ORG/NAME."


def prepare(
    source: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help=SOURCES_HELP, show_default="openwebtext")] = None,
    name: Annotated[
        str, typer.Option(help="Folder under data/.", show_default="the source's name", rich_help_panel=DATASET)
    ] = "",
    tokenizer: Annotated[
        str, typer.Option(help=TOKENIZER_HELP, show_default="by size: bpe:2048 to bpe:32768, gpt2", rich_help_panel=DATASET)
    ] = "",
    max_tokens: Annotated[
        str, typer.Option(help="Stop after this many tokens, e.g. 200M.", show_default="all", rich_help_panel=DATASET)
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per available core.", rich_help_panel=EXECUTION)] = 0,
    text_column: Annotated[
        str,
        typer.Option(
            help="Column or key that holds the text.", show_default="text, or the only text column", rich_help_panel=DATASET
        ),
    ] = "",
    split: Annotated[str, typer.Option(help=SPLIT_HELP, rich_help_panel=DATASET)] = "auto",
    encoding: Annotated[
        str,
        typer.Option(
            help="Encoding of text files, e.g. cp1252.", show_default="by byte order mark, else UTF-8", rich_help_panel=DATASET
        ),
    ] = "",
    max_doc_bytes: Annotated[
        str, typer.Option(help="Skip longer documents, e.g. 10M.", show_default="split them", rich_help_panel=FILTERING)
    ] = "",
    max_bad_docs: Annotated[
        int, typer.Option(min=0, help="Skip up to this many unreadable documents.", rich_help_panel=FILTERING)
    ] = 0,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Skip documents with the same text as an earlier one.", rich_help_panel=FILTERING)
    ] = False,
    piece: Annotated[
        str,
        typer.Option(
            help="I/N: prepare only share I of N, on several machines with one folder.",
            show_default="all",
            rich_help_panel=EXECUTION,
        ),
    ] = "",
    finish: Annotated[
        bool, typer.Option("--finish", help="Finish a dataset whose shares are prepared.", rich_help_panel=EXECUTION)
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Local processes, or tasks on a Ray cluster.", rich_help_panel=EXECUTION)
    ] = "local",
    encoder: Annotated[
        str, typer.Option(help="tiktoken or fastokens.", show_default="the fastest installed", rich_help_panel=EXECUTION)
    ] = "auto",
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the text for validation; 0: by source.", rich_help_panel=DATASET)
    ] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print dataset.json on stdout.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Turn text into memory-mapped token shards."""
    from llamactl.cli.ui.console import show_next
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.corpus.dataset_info import Recipe
    from llamactl.corpus.engines import ENGINES
    from llamactl.corpus.prepare import finish_dataset, prepare_dataset
    from llamactl.corpus.sources import Reading, open_source
    from llamactl.escape import path_to_text
    from llamactl.units import read_count

    names = source or ["openwebtext"]
    opened = open_source(names, Reading(text_column, split, encoding))
    show_notes(opened.notes)
    # All that decides which bytes are written: the same recipe resumes a dataset, another one starts anew.
    recipe = Recipe(
        source=path_to_text(" ".join(names)),
        inputs=opened.inputs,
        tokenizer=locate_tokenizer(tokenizer) or opened.tokenizer,
        text_column=opened.text_column,
        split=opened.split,
        encoding=opened.encoding,
        val_fraction=val_fraction or opened.val_fraction,
        max_tokens=read_count(max_tokens) if max_tokens else 0,
        max_doc_bytes=read_count(max_doc_bytes) if max_doc_bytes else 0,
        max_bad_docs=max_bad_docs,
        dedup=dedup,
    )
    folder = DatasetDir.from_name(name or opened.name)
    processes = ENGINES[engine](workers or _processes(opened))
    if finish:
        events = finish_dataset(opened, recipe, folder, processes)
    else:
        events = prepare_dataset(opened, recipe, folder, processes, encoder, read_share(piece))
    show_progress(events, opened, folder, json)
    if piece and not folder.info_path.exists():
        show_next("the same command with --finish in place of --piece, once, on one machine", why="When all shares are made")


def show_notes(notes: "Sequence[str]") -> None:
    """Print notes on what was chosen and skipped, a line each."""
    from rich.text import Text

    from llamactl.cli.ui.console import progress
    from llamactl.escape import escape_control_chars

    for note in notes:
        progress.print(Text(escape_control_chars(note), style="dim"))


def read_share(text: str) -> "Share":
    """Parse I/N, or return the only share of an empty text; raises UsageError."""
    from llamactl.corpus.prepare import Share
    from llamactl.errors import UsageError

    if not text:
        return Share()
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise UsageError(f"--piece takes I/N, not {text!r}.", "", "Example: --piece 3/8, the third of eight shares")
    return Share(int(number), int(total))


def _processes(source: "Source") -> int:
    """Choose the number of processes: one per core, at most one per piece, and only one for a small source."""
    from llamactl.hardware.limits import usable_cores

    # A size of 0 is unknown, as for a download, and not small.
    small = 0 < source.size < SMALL
    return 1 if small else min(usable_cores(), len(source.pieces))


def show_progress(events: "Iterator[Event]", source: "Source", folder: "DatasetDir", json: bool) -> None:
    """Show progress on stderr until the dataset is complete, then its summary and the next command."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamactl.cli.ui.console import progress
    from llamactl.corpus.prepare import Estimated, Learning, PieceDone, Sealed, TokenizerReady
    from llamactl.units import show_bytes, show_count, show_time

    facts = TextColumn("{task.fields[facts]}")
    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), facts, TimeRemainingColumn(compact=True))
    tokens = documents = fresh_bytes = fresh_tokens = 0
    skipped, lost = Counter[str](), Counter[str]()  # documents and bytes by reason
    reasons: set[str] = set()  # for preparing pieces again, already printed
    started = monotonic()
    with Progress(*columns, console=progress, transient=True) as bar:
        task = bar.add_task("reading", total=len(source.pieces), facts="")
        for event in events:
            match event:
                case Estimated(needed=needed, free=free) if needed:
                    bar.console.print(f"about {show_bytes(needed)} to write; {show_bytes(free)} free")
                case Learning(text_bytes=size, seconds=seconds):
                    bar.update(task, description="learning a BPE", facts=f"from {show_bytes(size)}, {show_time(seconds)}")
                case TokenizerReady():
                    show_tokenizer(event)
                    started = monotonic()  # the speed is that of encoding alone
                case PieceDone(receipt=receipt, kept=kept, stale=stale):
                    show_stale(bar.console, stale, reasons)
                    tokens, documents = tokens + receipt.tokens, documents + receipt.documents_read
                    # Pieces kept from an earlier attempt took no time now, so they do not count for the speed.
                    fresh_bytes += 0 if kept else receipt.text_bytes
                    fresh_tokens += 0 if kept else receipt.tokens
                    skipped.update(receipt.skipped)
                    lost.update(receipt.skipped_bytes)
                    seconds = monotonic() - started
                    speed = f"{show_bytes(fresh_bytes / seconds)}/s, {show_count(fresh_tokens / seconds)} tokens/s"
                    text = f"{show_count(documents)} docs{show_skipped(skipped, lost)}  {show_count(tokens)} tokens  {speed}"
                    bar.update(task, advance=1, facts=text, description="encoding")
                case Sealed(info=info, kept=kept):
                    bar.stop()
                    pace = f"{show_time(monotonic() - started)}, {speed}" if fresh_bytes else ""
                    show_summary(info, folder, kept, pace, json)


def locate_tokenizer(name: str) -> str:
    """Return the file of a model's tokenizer; what is no model stays as it is. Raises DataError, NoNetwork."""
    from llamactl.checkpoint.model_hub import PREFIX
    from llamactl.storage.home import home_folder

    run = name.partition("@")[0]
    is_run = len(Path(run).parts) == 1 and not Path(name).exists() and (home_folder() / "runs" / run).is_dir()
    if not name.startswith(PREFIX) and not is_run:
        return name
    from llamactl.checkpoint.select import locate_checkpoint

    return str(locate_checkpoint(name).resolve() / "tokenizer.json")


def show_tokenizer(ready: "TokenizerReady") -> None:
    """Print the size of the tokenizer, where it comes from, and the encoder."""
    from llamactl.cli.ui.console import progress

    how = "learned from the source" if ready.learned else "ready"
    progress.print(f"tokenizer with vocabulary {ready.vocab_size:,} {how}; encoder {ready.encoder}")
    # An encoder that is faster but not exact would make another dataset.
    if ready.refused:
        progress.print(f"{ready.refused} gives other ids than tiktoken, so it is not used", style="yellow")


def show_stale(console: "Console", reason: str, shown: set[str]) -> None:
    """Print, once for each reason, why finished pieces are made again."""
    if reason and reason not in shown:
        shown.add(reason)
        console.print(f"pieces are made again: {reason}", style="yellow")


def show_skipped(skipped: "Mapping[str, int]", lost: "Mapping[str, int]") -> str:
    """Format the number of skipped documents for each reason, with their bytes where known."""
    from llamactl.units import show_bytes

    sizes = {reason: f", {show_bytes(size)}" for reason, size in lost.items()}
    return "".join(f", {count:,} skipped ({reason}{sizes.get(reason, '')})" for reason, count in sorted(skipped.items()))


def show_summary(info: "DatasetInfo", folder: "DatasetDir", kept: bool, pace: str, json: bool) -> None:
    """Print the contents of a finished dataset, and the next command."""
    from llamactl.cli.ui.console import output, show_next, show_table
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.units import show_bytes

    train, val = info.total("train", "tokens"), info.total("val", "tokens")
    text = info.total("train", "text_bytes") + info.total("val", "text_bytes")
    written = info.total("train", "documents") + info.total("val", "documents")
    show_table(
        f"{folder.path} {'was complete already' if kept else 'is complete'}",
        {
            "documents": f"{info.documents_read:,} read, {written:,} written{show_skipped(info.skipped, info.skipped_bytes)}",
            "text": f"{show_bytes(text)}, {text / (train + val):.2f} bytes per token",
            "train": f"{train:,} tokens of {info.total('train', 'documents'):,} documents",
            "validation": f"{val:,} tokens of {info.total('val', 'documents'):,} documents, {val / (train + val):.2%} of all",
            "tokenizer": f"{info.recipe.tokenizer}, vocabulary {info.vocab_size:,}",
            "digest": info.digest[:16],
            **({"encoded in": pace} if pace else {}),
        },
    )
    if json:
        output.print(info.model_dump_json(indent=1))
    # train takes the newest dataset by default: name this one where it is not, as when its folder is read-only.
    newest = DatasetDir.from_name("").path == folder.path
    show_next("llamactl train" + ("" if newest else f" --data {folder.path.name}"))

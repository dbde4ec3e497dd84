"""llamactl prepare: tokenize text into shards."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from llamactl.corpus.prepare import Share
    from llamactl.corpus.sources import Reading, Source

# Headings of the groups of options in --help.
DATASET, FILTERING, EXECUTION, OUTPUT = "Dataset", "Filtering", "Execution", "Output"

# Below so many bytes of input, starting more processes takes longer than the work.
SMALL = 32 << 20
MOST_WORKERS = 4096
LARGEST_COUNT = 10**12

SOURCES_HELP = (
    "openwebtext, sample, hf:org/name[:config], or files, folders and globs: .txt .md .rst .jsonl .ndjson .json .csv .tsv "
    ".parquet .arrow .feather, source code (.py .c .tex ...), text also as .gz .zst .xz .bz2, folders of save_to_disk."
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
        str, typer.Option(help=TOKENIZER_HELP, show_default="by size: bpe:2048 to bpe:16384, gpt2", rich_help_panel=DATASET)
    ] = "",
    weights: Annotated[
        str,
        typer.Option(
            help="Mix the sources: the share of the tokens of each, e.g. 0.7,0.3.",
            show_default="all of each",
            rich_help_panel=DATASET,
        ),
    ] = "",
    max_tokens: Annotated[
        str, typer.Option(help="Stop after this many tokens, e.g. 200M.", show_default="all", rich_help_panel=DATASET)
    ] = "",
    workers: Annotated[
        int, typer.Option(min=0, max=MOST_WORKERS, help="Processes; 0: one per available core.", rich_help_panel=EXECUTION)
    ] = 0,
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
        int,
        typer.Option(min=0, max=LARGEST_COUNT, help="Skip up to this many unreadable documents.", rich_help_panel=FILTERING),
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
    from llamactl.cli.ui.preparation import show_notes, show_progress
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.corpus.engines import ENGINES
    from llamactl.corpus.prepare import finish_dataset, prepare_dataset
    from llamactl.corpus.recipes import build_recipe
    from llamactl.corpus.sources import Reading
    from llamactl.errors import UsageError
    from llamactl.escape import path_to_text
    from llamactl.units import read_count

    if piece and finish:
        raise UsageError("--piece and --finish exclude each other.", "", "Make all shares first, then run --finish alone.")
    names = source or ["openwebtext"]
    opened = open_sources(names, Reading(path_to_text(text_column), split, encoding), weights, alone=not (piece or finish))
    show_notes(opened.notes)
    # All that decides which bytes are written: the same recipe resumes a dataset, another one starts anew.
    recipe = build_recipe(
        opened,
        names,
        tokenizer=locate_tokenizer(tokenizer),
        text_column=path_to_text(text_column),
        val_fraction=val_fraction,
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


def open_sources(names: list[str], reading: "Reading", weights: str, alone: bool) -> "Source":
    """Plan the sources together, or as a mixture; raises UsageError for a mixture that several machines share."""
    from llamactl.corpus.mixture import open_mixture
    from llamactl.corpus.sources import open_source
    from llamactl.errors import UsageError

    if not weights:
        return open_source(names, reading)
    if not alone:
        fix = "Leave --piece or --finish out, or prepare without --weights."
        raise UsageError("A mixture is prepared by one machine.", "How much of a source is used depends on all others.", fix)
    return open_mixture(names, weights, reading)


def read_share(text: str) -> "Share":
    """Parse I/N, or return the only share of an empty text; raises UsageError."""
    from llamactl.corpus.prepare import Share
    from llamactl.errors import UsageError

    if not text:
        return Share()
    number, _, total = text.partition("/")
    # Python refuses to read numbers of thousands of digits.
    if not (re.fullmatch(r"\d{1,9}/\d{1,9}", text) and 1 <= int(number) <= int(total)):
        raise UsageError(f"--piece takes I/N, not {text!r}.", "", "Example: --piece 3/8, the third of eight shares")
    return Share(int(number), int(total))


def _processes(source: "Source") -> int:
    """Choose the number of processes: one per core, at most one per piece, and only one for a small source."""
    from llamactl.hardware.limits import usable_cores

    # A size of 0 is unknown, as for a download, and not small.
    small = 0 < source.size < SMALL
    return 1 if small else min(usable_cores(), len(source.pieces))


def locate_tokenizer(name: str) -> str:
    """Return the file of a model's tokenizer; what is no model stays as it is. Raises DataError, NoNetwork."""
    from llamactl.checkpoint.model_hub import PREFIX, TOKENIZER_FILES, download_model
    from llamactl.storage.home import home_folder

    if name.startswith(PREFIX):
        # Its weights may take hundreds of gigabytes.
        return str(download_model(name, TOKENIZER_FILES).resolve() / "tokenizer.json")
    run = name.partition("@")[0]
    # By lexists, for which a name that is too long or odd for a path is that of nothing.
    is_run = len(Path(run).parts) == 1 and not os.path.lexists(name) and os.path.lexists(home_folder() / "runs" / run)
    if not is_run:
        return name
    from llamactl.checkpoint.select import locate_checkpoint

    return str(locate_checkpoint(name).resolve() / "tokenizer.json")

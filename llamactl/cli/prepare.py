"""llamactl prepare: text becomes token shards."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamactl.artifacts import DatasetDir, DatasetInfo
    from llamactl.corpus.prepare import Event
    from llamactl.corpus.sources import Source

SMALL = 32 << 20  # bytes of input below which starting more processes takes longer than the work

SOURCES_HELP = "openwebtext, sample, hf:org/name[:config], or files, folders and globs of .txt, .jsonl, .parquet (.gz, .zst)."
TOKENIZER_HELP = "gpt2, bpe:N (learned from the source), bytes, or a tokenizer.json."


def prepare(
    source: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help=SOURCES_HELP, show_default="openwebtext")] = None,
    name: Annotated[str, typer.Option(help="Folder under data/.", show_default="the source's name")] = "",
    tokenizer: Annotated[str, typer.Option(help=TOKENIZER_HELP, show_default="bpe:4096 for sample, else gpt2")] = "",
    max_tokens: Annotated[str, typer.Option(help="Stop after so many, e.g. 200M.", show_default="all")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    text_column: Annotated[str, typer.Option(help="Column or key that holds the text.")] = "text",
    val_fraction: Annotated[float, typer.Option(min=0, max=0.5, help="Share of documents to hold out; 0: by source.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print dataset.json on stdout.")] = False,
) -> None:
    """Turn text into memory-mapped token shards."""
    from llamactl.artifacts import DatasetDir, Recipe
    from llamactl.corpus.prepare import prepare as make
    from llamactl.corpus.sources import open_source
    from llamactl.quantities import read_count

    words = source or ["openwebtext"]
    planned = open_source(words)
    recipe = Recipe(
        source=" ".join(words),
        inputs=planned.inputs,
        tokenizer=tokenizer or planned.tokenizer,
        text_column=text_column,
        val_fraction=val_fraction or planned.val_fraction,
        max_tokens=read_count(max_tokens) if max_tokens else 0,
    )
    folder = DatasetDir.named(name or planned.name)
    show(make(planned, recipe, folder, workers or _processes(planned)), planned, folder, json)


def _processes(source: "Source") -> int:
    small = 0 < source.size < SMALL
    return 1 if small else min(os.cpu_count() or 1, len(source.pieces))


def show(events: "Iterator[Event]", source: "Source", folder: "DatasetDir", json: bool) -> None:
    """Follow the work on stderr; the summary says what came of it and what to do next."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamactl.cli.screen import progress
    from llamactl.corpus.prepare import PieceDone, Sealed, TokenizerReady
    from llamactl.quantities import show_count

    facts = TextColumn("pieces, {task.fields[tokens]}")
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), facts, TimeRemainingColumn())
    tokens = 0
    with Progress(*columns, console=progress, transient=True) as bar:
        task = bar.add_task("reading", total=len(source.pieces), tokens="")
        for event in events:
            match event:
                case TokenizerReady(vocab_size=size, learned=learned):
                    how = "learned from the source" if learned else "ready"
                    bar.console.print(f"tokenizer of {size:,} ids {how}")
                case PieceDone(receipt=receipt):
                    tokens += receipt.tokens
                    bar.update(task, advance=1, tokens=f"{show_count(tokens)} tokens", description="encoding")
                case Sealed(info=info, kept=kept):
                    bar.stop()
                    summarise(info, folder, kept, json)


def summarise(info: "DatasetInfo", folder: "DatasetDir", kept: bool, json: bool) -> None:
    """What a finished dataset holds."""
    from llamactl.cli.screen import output, show_next, show_table
    from llamactl.quantities import show_bytes

    train, val = info.total("train", "tokens"), info.total("val", "tokens")
    text = info.total("train", "text_bytes") + info.total("val", "text_bytes")
    skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in info.skipped.items())
    written = info.total("train", "documents") + info.total("val", "documents")
    show_table(
        f"{folder.path} {'was complete already' if kept else 'is complete'}",
        {
            "documents": f"{info.documents_read:,} read, {written:,} written{skipped}",
            "text": f"{show_bytes(text)}, {text / (train + val):.2f} bytes per token",
            "train": f"{train:,} tokens of {info.total('train', 'documents'):,} documents",
            "validation": f"{val:,} tokens of {info.total('val', 'documents'):,} documents",
            "tokenizer": f"{info.recipe.tokenizer}, {info.vocab_size:,} ids",
            "digest": info.digest[:16],
        },
    )
    if json:
        output.print(info.model_dump_json(indent=1), markup=False)
    show_next("llamactl train --tokens 256000")

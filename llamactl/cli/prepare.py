"""llamactl prepare: text becomes token shards."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from llamactl.artifacts import DatasetDir, DatasetInfo
    from llamactl.corpus.prepare import Event, Share
    from llamactl.corpus.sources import Source

# Headings under which options stand in the help.
DATASET, LEFT_OUT, WORK, SAID = "The dataset", "What is left out", "Who does the work", "What is said"

SMALL = 32 << 20  # bytes of input below which starting more processes takes longer than the work

SOURCES_HELP = "openwebtext, sample, hf:org/name[:config], or files, folders and globs of .txt, .jsonl, .parquet (.gz, .zst)."
TOKENIZER_HELP = "gpt2, bpe:N (learned from the source), bytes, or a tokenizer.json."


def prepare(
    source: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help=SOURCES_HELP, show_default="openwebtext")] = None,
    name: Annotated[
        str, typer.Option(help="Folder under data/.", show_default="the source's name", rich_help_panel=DATASET)
    ] = "",
    tokenizer: Annotated[
        str, typer.Option(help=TOKENIZER_HELP, show_default="bpe:4096 for sample, else gpt2", rich_help_panel=DATASET)
    ] = "",
    max_tokens: Annotated[
        str, typer.Option(help="Stop after so many, e.g. 200M.", show_default="all", rich_help_panel=DATASET)
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.", rich_help_panel=WORK)] = 0,
    text_column: Annotated[str, typer.Option(help="Column or key that holds the text.", rich_help_panel=DATASET)] = "text",
    max_doc_bytes: Annotated[
        str, typer.Option(help="Leave longer documents out, e.g. 10M.", show_default="split them", rich_help_panel=LEFT_OUT)
    ] = "",
    max_bad_docs: Annotated[
        int, typer.Option(min=0, help="Leave out up to so many that can't be read.", rich_help_panel=LEFT_OUT)
    ] = 0,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Of documents with the same text keep the first.", rich_help_panel=LEFT_OUT)
    ] = False,
    piece: Annotated[
        str,
        typer.Option(help="I/N: make a share only, for N machines and one folder.", show_default="all", rich_help_panel=WORK),
    ] = "",
    finish: Annotated[bool, typer.Option("--finish", help="Seal what the shares have made.", rich_help_panel=WORK)] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes here, or tasks on a Ray cluster.", rich_help_panel=WORK)
    ] = "local",
    encoder: Annotated[
        str, typer.Option(help="tiktoken or fastokens.", show_default="the fastest installed", rich_help_panel=WORK)
    ] = "auto",
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of documents to hold out; 0: by source.", rich_help_panel=DATASET)
    ] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print dataset.json on stdout.", rich_help_panel=SAID)] = False,
) -> None:
    """Turn text into memory-mapped token shards."""
    from llamactl.artifacts import DatasetDir, Recipe
    from llamactl.cli.screen import show_next
    from llamactl.corpus.engines import ENGINES
    from llamactl.corpus.prepare import finish as seal
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
        max_doc_bytes=read_count(max_doc_bytes) if max_doc_bytes else 0,
        max_bad_docs=max_bad_docs,
        dedup=dedup,
    )
    folder = DatasetDir.named(name or planned.name)
    if finish:
        events = seal(planned, recipe, folder)
    else:
        events = make(planned, recipe, folder, ENGINES[engine](workers or _processes(planned)), encoder, read_share(piece))
    show(events, planned, folder, json)
    if piece and not folder.info_path.exists():
        show_next("the same command with --finish in place of --piece, once, on one machine", why="When all shares are made")


def read_share(text: str) -> "Share":
    """I of N in I/N; raises BadUsage."""
    from llamactl.corpus.prepare import Share
    from llamactl.errors import BadUsage

    if not text:
        return Share()
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise BadUsage(f"--piece takes I/N, not {text!r}.", "", "Example: --piece 3/8, the third of eight shares")
    return Share(int(number), int(of))


def _processes(source: "Source") -> int:
    small = 0 < source.size < SMALL
    return 1 if small else min(os.cpu_count() or 1, len(source.pieces))


def show(events: "Iterator[Event]", source: "Source", folder: "DatasetDir", json: bool) -> None:
    """Follow the work on stderr; the summary says what came of it and what to do next."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamactl.cli.screen import progress
    from llamactl.corpus.prepare import Estimated, PieceDone, Sealed, TokenizerReady
    from llamactl.quantities import show_bytes, show_count, show_time

    facts = TextColumn("{task.fields[facts]}")
    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), facts, TimeRemainingColumn(compact=True))
    tokens = documents = fresh_bytes = fresh_tokens = 0
    skipped: Counter[str] = Counter()
    started = monotonic()
    with Progress(*columns, console=progress, transient=True) as bar:
        task = bar.add_task("reading", total=len(source.pieces), facts="")
        for event in events:
            match event:
                case Estimated(needed=needed, free=free) if needed:
                    bar.console.print(f"about {show_bytes(needed)} to write; {show_bytes(free)} free")
                case TokenizerReady(vocab_size=size, learned=learned, encoder=encoder, refused=refused):
                    how = "learned from the source" if learned else "ready"
                    bar.console.print(f"tokenizer of {size:,} ids {how}; {encoder} encodes")
                    if refused:
                        bar.console.print(f"{refused} gives other ids than tiktoken, so it is not used", style="yellow")
                    started = monotonic()
                case PieceDone(receipt=receipt, kept=kept):
                    tokens, documents = tokens + receipt.tokens, documents + receipt.documents_read
                    fresh_bytes += 0 if kept else receipt.text_bytes
                    fresh_tokens += 0 if kept else receipt.tokens
                    skipped.update(receipt.skipped)
                    took = monotonic() - started
                    speed = f"{show_bytes(fresh_bytes / took)}/s, {show_count(fresh_tokens / took)} tokens/s"
                    said = f"{show_count(documents)} docs{show_skipped(skipped)}  {show_count(tokens)} tokens  {speed}"
                    bar.update(task, advance=1, facts=said, description="encoding")
                case Sealed(info=info, kept=kept):
                    bar.stop()
                    pace = f"{show_time(monotonic() - started)}, {speed}" if fresh_bytes else ""
                    summarise(info, folder, kept, pace, json)


def show_skipped(skipped: "Mapping[str, int]") -> str:
    """How many documents were left out, for which reasons."""
    return "".join(f", {count:,} skipped ({reason})" for reason, count in sorted(skipped.items()))


def summarise(info: "DatasetInfo", folder: "DatasetDir", kept: bool, pace: str, json: bool) -> None:
    """What a finished dataset holds."""
    from llamactl.cli.screen import output, show_next, show_table
    from llamactl.quantities import show_bytes

    train, val = info.total("train", "tokens"), info.total("val", "tokens")
    text = info.total("train", "text_bytes") + info.total("val", "text_bytes")
    written = info.total("train", "documents") + info.total("val", "documents")
    show_table(
        f"{folder.path} {'was complete already' if kept else 'is complete'}",
        {
            "documents": f"{info.documents_read:,} read, {written:,} written{show_skipped(info.skipped)}",
            "text": f"{show_bytes(text)}, {text / (train + val):.2f} bytes per token",
            "train": f"{train:,} tokens of {info.total('train', 'documents'):,} documents",
            "validation": f"{val:,} tokens of {info.total('val', 'documents'):,} documents",
            "tokenizer": f"{info.recipe.tokenizer}, {info.vocab_size:,} ids",
            "digest": info.digest[:16],
            **({"encoded in": pace} if pace else {}),
        },
    )
    if json:
        output.print(info.model_dump_json(indent=1), markup=False)
    show_next("llamactl train --tokens 256000")

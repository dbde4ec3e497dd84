"""Show a preparation: notes, progress, and the summary of a finished dataset."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from llamactl.cli.ui.console import output, progress, show_next, show_table
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo
from llamactl.corpus.dataset_tokenizer import Learning, TokenizerReady
from llamactl.corpus.prepare import Estimated, Event, PieceDone, Sealed
from llamactl.corpus.sources import Source
from llamactl.escape import escape_control_chars
from llamactl.units import show_bytes, show_count, show_time


def show_notes(notes: Sequence[str]) -> None:
    """Print notes on what was chosen and skipped, a line each."""
    for note in notes:
        progress.print(Text(escape_control_chars(note), style="dim"))


def show_progress(events: Iterator[Event], source: Source, folder: DatasetDir, json: bool) -> None:
    """Show progress on stderr until the dataset is complete, then its summary and the next command."""
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
                    show_summary(info, folder, kept, pace, json, source)


def show_tokenizer(ready: TokenizerReady) -> None:
    """Print the size of the tokenizer, where it comes from, and the encoder."""
    how = "learned from the source" if ready.learned else "ready"
    progress.print(f"tokenizer with vocabulary {ready.vocab_size:,} {how}; encoder {ready.encoder}")
    if not ready.lossless:
        progress.print(
            "this tokenizer changes text or drops some of it: spaces, or characters that it does not have", style="yellow"
        )
    # An encoder that is faster but not exact would make another dataset.
    if ready.refused:
        progress.print(f"{ready.refused} gives other ids than tiktoken, so it is not used", style="yellow")


def show_stale(console: Console, reason: str, shown: set[str]) -> None:
    """Print, once for each reason, why finished pieces are made again."""
    if reason and reason not in shown:
        shown.add(reason)
        console.print(f"pieces are made again: {reason}", style="yellow")


def show_skipped(skipped: Mapping[str, int], lost: Mapping[str, int]) -> str:
    """Format the number of skipped documents for each reason, with their bytes where known."""
    sizes = {reason: f", {show_bytes(size)}" for reason, size in lost.items()}
    return "".join(f", {count:,} skipped ({reason}{sizes.get(reason, '')})" for reason, count in sorted(skipped.items()))


def describe_mixture(info: DatasetInfo, source: Source) -> str:
    """Describe how many tokens of each component a dataset has; empty where it is no mixture."""
    texts = []
    for component in source.mixed:
        tokens = sum(shard.tokens for shard in info.shards if shard.piece in component.piece_numbers)
        share = tokens / sum(shard.tokens for shard in info.shards)
        texts.append(f"{component.name} {share:.1%} ({show_count(tokens)} tokens)")
    return ", ".join(texts)


def show_summary(info: DatasetInfo, folder: DatasetDir, kept: bool, pace: str, json: bool, source: Source) -> None:
    """Print the contents of a finished dataset, and the next command."""
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
            **({"mixture": mixture} if (mixture := describe_mixture(info, source)) else {}),
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

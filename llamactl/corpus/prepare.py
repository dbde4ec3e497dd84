"""Documents become token shards: pieces in parallel, one shard a piece and split, dataset.json last."""

import multiprocessing
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import Field

from llamactl import durable, tokenizer
from llamactl.artifacts import DatasetDir, DatasetInfo, Recipe, Record, Shard, Split, read
from llamactl.corpus.shards import ShardWriter
from llamactl.corpus.sources import Source
from llamactl.errors import BadData, NoRoom
from llamactl.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = ("train", "val")

# A BPE learns from this much text; more changes its merges little and takes memory (research: 50 MB gave 4.0 bytes a token).
TRAINING_TEXT = 64 << 20


class Receipt(Record):
    """What is known of a finished piece; it counts only for the job that it names."""

    job: str
    shards: tuple[Shard, ...]
    documents_read: int = Field(ge=0)
    skipped: dict[str, int]
    cut: bool = Field(description="it ended because `most` tokens were reached")

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(shard.tokens for shard in self.shards)


@dataclass(frozen=True)
class TokenizerReady:
    """The tokenizer is there; `learned` when it was trained on the source."""

    vocab_size: int
    learned: bool


@dataclass(frozen=True)
class PieceDone:
    """A piece is on disk; `kept` when an earlier run had finished it."""

    piece: int
    pieces: int
    receipt: Receipt
    kept: bool


@dataclass(frozen=True)
class Sealed:
    """The dataset is complete; `kept` when it was before."""

    info: DatasetInfo
    kept: bool


Event = TokenizerReady | PieceDone | Sealed


@dataclass(frozen=True)
class Job:
    """All that a process needs to make the shards of one piece."""

    source: Source
    piece: int
    recipe: Recipe
    folder: DatasetDir
    most: int

    @property
    def name(self) -> str:
        """Equal names mean equal shards."""
        content = f"{self.recipe.model_dump_json()} {self.piece} {self.most}"
        return blake2b(content.encode(), digest_size=16).hexdigest()


def prepare(source: Source, recipe: Recipe, folder: DatasetDir, workers: int) -> Iterator[Event]:
    """Make the dataset, keeping what an earlier, interrupted call has finished.

    Raises BadData when `folder` is complete with another recipe, or when the source can't be read.
    """
    if folder.info_path.exists():
        yield _already(folder, recipe)
        return
    yield _store_tokenizer(source, recipe, folder)
    receipts: list[Receipt] = []
    with closing(_pieces(source, recipe, folder, workers)) as events:
        for event in events:
            receipts.append(event.receipt)
            yield event
    yield Sealed(_seal(receipts, recipe, folder), kept=False)


def _already(folder: DatasetDir, recipe: Recipe) -> Sealed:
    info = folder.info()
    if info.recipe != recipe:
        differ = [key for key, value in info.recipe.model_dump().items() if value != getattr(recipe, key)]
        why = f"It was made with another {', '.join(differ)}."
        raise BadData(f"{folder.path} is there already.", why, f"Use --name NAME, or remove {folder.path}.")
    folder.info_path.touch()  # what was asked for last is the newest, which the next command takes
    return Sealed(info, kept=True)


def _store_tokenizer(source: Source, recipe: Recipe, folder: DatasetDir) -> TokenizerReady:
    size = tokenizer.bpe_size(recipe.tokenizer)
    made = tokenizer.train_bpe(_training_text(source, recipe), size) if size else tokenizer.named(recipe.tokenizer)
    durable.write(folder.tokenizer_path, made.description)
    return TokenizerReady(made.vocab_size, learned=bool(size))


def _training_text(source: Source, recipe: Recipe) -> Iterator[str]:
    """The first documents of the source, without those that are held out."""
    left = TRAINING_TEXT
    for piece in range(len(source.pieces)):
        for place, text in documents(source, piece, recipe):
            if left <= 0:
                return
            if place == "train":
                left -= len(text)
                yield text


def _pieces(source: Source, recipe: Recipe, folder: DatasetDir, workers: int) -> Generator[PieceDone, None, None]:
    """The pieces in their order, each cut so that together they hold at most `max_tokens`."""
    pieces = len(source.pieces)
    room = recipe.max_tokens or sys.maxsize
    jobs = [Job(source, piece, recipe, folder, room) for piece in range(pieces)]
    with closing(_run(iter(jobs), workers)) as done:
        for piece, (receipt, kept) in enumerate(done):
            if receipt.tokens > room:
                receipt, kept = make_piece(Job(source, piece, recipe, folder, room))
            room -= receipt.tokens
            yield PieceDone(piece, pieces, receipt, kept)
            if receipt.cut:
                return


def _run(jobs: Iterator[Job], workers: int) -> Generator[tuple[Receipt, bool], None, None]:
    """Run jobs in this process, or a few at a time in others; results come in order."""
    if workers <= 1:
        yield from map(make_piece, jobs)
        return
    # spawn: a forked child would share the locks of the parent's threads (pyarrow, tokenizers).
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            waiting: list[Future[tuple[Receipt, bool]]] = [pool.submit(make_piece, job) for job in islice(jobs, 2 * workers)]
            while waiting:
                result = waiting.pop(0).result()
                waiting.extend(pool.submit(make_piece, job) for job in islice(jobs, 1))
                yield result
        except BrokenProcessPool as error:
            fix = "Run the same command again with fewer --workers; finished pieces are kept."
            raise NoRoom("A worker process died.", "Most often the system ran out of memory.", fix) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_piece(job: Job) -> tuple[Receipt, bool]:
    """Make the shards of a piece and its receipt, unless they are there; the flag says they were."""
    path = job.folder.receipt(job.piece)
    if path.exists() and (receipt := read(path, Receipt)).job == job.name:
        return receipt, True
    receipt = _encode(job)
    durable.write(path, receipt.model_dump_json())
    return receipt, False


def _encode(job: Job) -> Receipt:
    """Tokenize a piece until it ends or its room does; each document ends with the end-of-text token."""
    made = Tokenizer(job.folder.tokenizer_path.read_text("utf-8"))
    room = job.most
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {s: stack.enter_context(ShardWriter(job.folder, s, job.piece, dtype(made.vocab_size))) for s in SPLITS}
        for place, text in documents(job.source, job.piece, job.recipe):
            if place in writers:
                ids = _ids(made, text, job)
                room -= len(ids) + 1
                if room < 0:
                    break
                writers[place].add(ids, made.end, len(text.encode()))
            counts[place] += 1
    shards = tuple(writer.shard() for writer in writers.values())
    skipped = {place: count for place, count in counts.items() if place not in writers}
    return Receipt(job=job.name, shards=shards, documents_read=counts.total(), skipped=skipped, cut=room < 0)


def documents(source: Source, piece: int, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The documents of a piece, each with its place: a split, or the reason why it is skipped.

    A document is held out when the hash of its text falls below `val_fraction`, wherever it stands;
    so is the very first, so that even the smallest dataset has something to validate on.
    """
    first = piece == 0
    for text in source.documents(piece, recipe.text_column):
        if not text or not text.strip():
            yield "empty", ""
            continue
        rank = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64
        yield "val" if first or rank < recipe.val_fraction else "train", text
        first = False


def _ids(made: Tokenizer, text: str, job: Job) -> np.ndarray:
    try:
        return made.encode(text)
    except UnicodeEncodeError as error:
        place = job.source.pieces[job.piece][0].location
        raise BadData(f"A document of {place} is not text.", f"It holds half a character: {error}.") from error


def dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest integer type that holds each id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _seal(receipts: list[Receipt], recipe: Recipe, folder: DatasetDir) -> DatasetInfo:
    """Write dataset.json, which makes the dataset complete, and drop what only an unfinished one needs."""
    made = Tokenizer(folder.tokenizer_path.read_text("utf-8"))
    info = DatasetInfo(
        recipe=recipe,
        tokenizer=made.digest,
        vocab_size=made.vocab_size,
        dtype=dtype(made.vocab_size),
        shards=tuple(shard for receipt in receipts for shard in receipt.shards if shard.tokens),
        documents_read=sum(receipt.documents_read for receipt in receipts),
        skipped=dict(sorted(sum((Counter(receipt.skipped) for receipt in receipts), Counter()).items())),
    ).sealed()
    if not info.total("train", "tokens"):
        why = f"Documents read: {info.documents_read}; the first one with text is held out for validation."
        raise BadData("There is no text to train on.", why, "Give it more than one document, or more --max-tokens.")
    durable.write(folder.info_path, info.model_dump_json(indent=1) + "\n")
    for path in [*folder.path.glob("*/[0-9]*.npy")]:
        if f"{path.parent.name}/{path.name}" not in {shard.file for shard in info.shards}:
            path.unlink()
    shutil.rmtree(folder.receipt(0).parent, ignore_errors=True)
    return info

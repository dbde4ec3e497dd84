"""Documents become token shards: pieces in parallel, one shard a piece and split, dataset.json last."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from llamactl import durable, encoders, tokenizer
from llamactl.artifacts import DatasetDir, DatasetInfo, Recipe
from llamactl.corpus.pieces import Job, Receipt, documents, dtype, make_piece
from llamactl.corpus.sources import Source
from llamactl.errors import BadData, NoRoom
from llamactl.tokenizer import Tokenizer

# A BPE learns from this much text; more changes its merges little and takes memory (research: 50 MB gave 4.0 bytes a token).
TRAINING_TEXT = 64 << 20


# An encoder is held against the reference on this many characters before it is trusted with the rest.
CHECKED_TEXT = 1 << 20

USUAL_BYTES_PER_TOKEN = 4.0  # English in GPT-2's BPE or one of its own, a little less than it usually has
USUAL_COMPRESSION = 3.0


@dataclass(frozen=True)
class Estimated:
    """What the shards will take on disk (0: not known), and what is free, in bytes."""

    needed: int
    free: int


@dataclass(frozen=True)
class TokenizerReady:
    """The tokenizer is there; `learned` when it was trained on the source. `refused` names a faster encoder that erred."""

    vocab_size: int
    learned: bool
    encoder: str
    refused: str = ""


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


Event = Estimated | TokenizerReady | PieceDone | Sealed


def prepare(source: Source, recipe: Recipe, folder: DatasetDir, workers: int, encoder: str = "auto") -> Iterator[Event]:
    """Make the dataset, keeping what an earlier, interrupted call has finished.

    Raises BadData when `folder` is complete with another recipe, or when the source can't be read, and NoRoom when
    the disk is too small.
    """
    if folder.info_path.exists():
        yield _already(folder, recipe)
        return
    yield estimate(source, recipe, folder)
    ready = _store_tokenizer(source, recipe, folder, encoders.choose(encoder))
    yield ready
    receipts: list[Receipt] = []
    first = Job(source, 0, recipe, folder, recipe.max_tokens or sys.maxsize, ready.encoder)
    with closing(_pieces(first, workers)) as events:
        for event in events:
            receipts.append(event.receipt)
            yield event
    yield Sealed(_seal(receipts, recipe, folder), kept=False)


def estimate(source: Source, recipe: Recipe, folder: DatasetDir) -> Estimated:
    """What is to be written, guessed from the size of the inputs; raises NoRoom when the disk has less."""
    packed = (part.size * (USUAL_COMPRESSION if part.location.endswith((".gz", ".zst")) else 1) for part in source.parts)
    tokens = sum(packed) / (1 if recipe.tokenizer == "bytes" else USUAL_BYTES_PER_TOKEN)
    tokens = min(tokens or source.usual_tokens, recipe.max_tokens or sys.maxsize)
    done = sum(path.stat().st_size for path in folder.path.glob("*/*.npy"))
    found = Estimated(round(tokens * 2), _free(folder.path) + done)
    if found.needed > found.free:
        why = f"The shards will take some {found.needed / 1e9:.3g} GB; {found.free / 1e9:.3g} GB are free."
        raise NoRoom(
            f"There is no room for {folder.path}.", why, "Take fewer with --max-tokens, or set LLAMACTL_HOME to another disk."
        )
    return found


def _free(path: Path) -> int:
    """Free bytes of the disk that a path is or will be on."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _already(folder: DatasetDir, recipe: Recipe) -> Sealed:
    info = folder.info()
    if info.recipe != recipe:
        differ = [key for key, value in info.recipe.model_dump().items() if value != getattr(recipe, key)]
        why = f"It was made with another {', '.join(differ)}."
        raise BadData(f"{folder.path} is there already.", why, f"Use --name NAME, or remove {folder.path}.")
    folder.info_path.touch()  # what was asked for last is the newest, which the next command takes
    return Sealed(info, kept=True)


def _store_tokenizer(source: Source, recipe: Recipe, folder: DatasetDir, encoder: str) -> TokenizerReady:
    size = tokenizer.bpe_size(recipe.tokenizer)
    made = tokenizer.train_bpe(_text(source, recipe, TRAINING_TEXT), size) if size else tokenizer.named(recipe.tokenizer)
    durable.write(folder.tokenizer_path, made.description)
    if encoder == "tiktoken" or encoders.agrees(encoder, made, list(_text(source, recipe, CHECKED_TEXT))):
        return TokenizerReady(made.vocab_size, bool(size), encoder)
    return TokenizerReady(made.vocab_size, bool(size), "tiktoken", refused=encoder)


def _text(source: Source, recipe: Recipe, most: int) -> Iterator[str]:
    """The first documents of the source, some `most` characters, without those that are held out."""
    for piece in range(len(source.pieces)):
        for document in documents(source, piece, recipe):
            if most <= 0:
                return
            if document.place == "train":
                most -= len(document.text)
                yield document.text


def _pieces(first: Job, workers: int) -> Generator[PieceDone, None, None]:
    """The pieces in their order, each cut so that together they hold at most `max_tokens`."""
    pieces, room, bad = len(first.source.pieces), first.most, 0
    jobs = (replace(first, piece=piece) for piece in range(pieces))
    with closing(_run(jobs, workers)) as done:
        for piece, (receipt, kept) in enumerate(done):
            if receipt.tokens > room:
                receipt, kept = make_piece(replace(first, piece=piece, most=room))
            room -= receipt.tokens
            bad += receipt.skipped.get("unreadable", 0)
            if bad > first.recipe.max_bad_docs:
                raise BadData(f"{bad} documents can't be read.", f"--max-bad-docs allows {first.recipe.max_bad_docs}.")
            yield PieceDone(piece, pieces, receipt, kept)
            if receipt.cut:
                return


def _run(jobs: Iterator[Job], workers: int) -> Generator[tuple[Receipt, bool], None, None]:
    """Run jobs in this process, or a few at a time in others; results come in order."""
    if workers <= 1:
        yield from map(make_piece, jobs)
        return
    # spawn: a forked child would share the locks of the parent's threads (pyarrow, tokenizers).
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
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


def _start_worker() -> None:
    """Ctrl-C reaches the whole process group, and the parent decides what it means; one thread a process is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["RAYON_NUM_THREADS"] = "1"


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

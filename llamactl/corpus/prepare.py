"""Documents become token shards: pieces in parallel, one shard a piece and split, dataset.json last."""

import shutil
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from llamactl import durable, encoders, tokenizer
from llamactl.artifacts import DatasetDir, DatasetInfo, Recipe
from llamactl.corpus import duplicates
from llamactl.corpus.documents import documents
from llamactl.corpus.engines import Engine, local
from llamactl.corpus.pieces import Job, Receipt, dtype, finished, make_piece
from llamactl.corpus.sources import Source
from llamactl.errors import BadData, DiskFull, NoRoom
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


@dataclass(frozen=True)
class Share:
    """Which pieces to make: every `of`-th from `number` (1 is the first) on; 1 of 1 is all."""

    number: int = 1
    of: int = 1


def prepare(
    source: Source, recipe: Recipe, folder: DatasetDir, engine: Engine, encoder: str = "auto", share: Share = Share()
) -> Iterator[Event]:
    """Make the dataset, keeping what an earlier, interrupted call has finished; a share of it is made but not sealed.

    Raises BadData when `folder` is complete with another recipe, or when the source can't be read, NoRoom when the disk is
    too small, and InUse when another process makes it.
    """
    if folder.info_path.exists():
        yield _already(folder, recipe)
        return
    found = estimate(source, recipe, folder)
    yield found
    alone = durable.locked(folder.lock_path) if share == Share() else nullcontext()
    try:
        with alone:
            yield from _make(source, recipe, folder, engine, encoder, share)
    except DiskFull as error:
        whole = f" The whole dataset takes some {found.needed / 1e6:,.1f} MB." if found.needed else ""
        raise DiskFull(error.what, f"{error.why}{whole}", error.fix) from error


def _make(source: Source, recipe: Recipe, folder: DatasetDir, engine: Engine, encoder: str, share: Share) -> Iterator[Event]:
    ready = _store_tokenizer(source, recipe, folder, encoders.choose(encoder))
    yield ready
    jobs = _jobs(source, recipe, folder, ready.encoder)
    if recipe.dedup:
        with closing(engine(duplicates.scan, jobs)) as hashes:
            duplicates.mark(jobs, list(hashes))
    if share == Share():
        yield from _all(jobs, engine)
        return
    mine = jobs[share.number - 1 :: share.of]
    with closing(engine(make_piece, mine)) as done:
        for job, (receipt, kept) in zip(mine, done, strict=True):
            yield PieceDone(job.piece, len(mine), receipt, kept)


def finish(source: Source, recipe: Recipe, folder: DatasetDir) -> Iterator[Event]:
    """Seal a dataset whose pieces were made in shares, perhaps elsewhere; raises BadData that names the missing ones."""
    if folder.info_path.exists():
        yield _already(folder, recipe)
        return
    jobs = [replace(job, trusting=True) for job in _jobs(source, recipe, folder, encoders.choose("auto"))]
    if missing := list(_missing(jobs)):
        names = ", ".join(map(str, missing[:9])) + (" ..." if len(missing) > 9 else "")
        what = f"{len(missing)} of {len(jobs)} pieces are not there yet: {names}."
        raise BadData(what, "A share was not run, not to its end, or with other options.", "Run each: --piece 1/N to N/N")
    yield from _all(jobs, local(1))


def _jobs(source: Source, recipe: Recipe, folder: DatasetDir, encoder: str) -> list[Job]:
    most = recipe.max_tokens or sys.maxsize
    return [Job(source, piece, recipe, folder, most, encoder) for piece in range(len(source.pieces))]


def _missing(jobs: list[Job]) -> Iterator[int]:
    """The pieces without a receipt, as far as they are needed for `max_tokens`."""
    room = jobs[0].most
    for job in jobs:
        receipt = finished(job)
        if receipt is None:
            yield job.piece
        elif (room := room - receipt.tokens) <= 0:
            return


def _all(jobs: list[Job], engine: Engine) -> Iterator[Event]:
    """Every piece, then the seal."""
    first = jobs[0]
    receipts: list[Receipt] = []
    with closing(_pieces(jobs, engine)) as events:
        for event in events:
            receipts.append(event.receipt)
            yield event
    made, _ = encoders.opened(first.encoder, first.folder.tokenizer_path)
    yield Sealed(_seal(receipts, made, first.recipe, first.folder), kept=False)


def estimate(source: Source, recipe: Recipe, folder: DatasetDir) -> Estimated:
    """What is to be written, guessed from the size of the inputs; raises NoRoom when the disk has less."""
    packed = (part.size * (USUAL_COMPRESSION if part.location.endswith((".gz", ".zst")) else 1) for part in source.parts)
    tokens = sum(packed) / (1 if recipe.tokenizer == "bytes" else USUAL_BYTES_PER_TOKEN)
    tokens = min(tokens or source.usual_tokens, recipe.max_tokens or sys.maxsize)
    done = sum(path.stat().st_size for path in folder.path.glob("*/*.npy"))
    width = np.dtype(dtype(tokenizer.bpe_size(recipe.tokenizer) or 0)).itemsize
    found = Estimated(round(tokens * width), durable.free_bytes(folder.path) + done)
    if found.needed > found.free:
        why = f"The shards will take some {found.needed / 1e9:.3g} GB; {found.free / 1e9:.3g} GB are free."
        raise NoRoom(
            f"There is no room for {folder.path}.", why, "Take fewer with --max-tokens, or set LLAMACTL_HOME to another disk."
        )
    return found


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


def _pieces(jobs: list[Job], engine: Engine) -> Generator[PieceDone, None, None]:
    """The pieces in their order, each cut so that together they hold at most `max_tokens`."""
    room, allowed, bad = jobs[0].most, jobs[0].recipe.max_bad_docs, 0
    with closing(engine(make_piece, jobs)) as done:
        for job, (receipt, kept) in zip(jobs, done, strict=False):
            if receipt.tokens > room:
                receipt, kept = make_piece(replace(job, most=room))
            room -= receipt.tokens
            bad += receipt.skipped.get("unreadable", 0)
            if bad > allowed:
                raise BadData(f"{bad} documents can't be read.", f"--max-bad-docs allows {allowed}.")
            yield PieceDone(job.piece, len(jobs), receipt, kept)
            if receipt.cut:
                return


def _seal(receipts: list[Receipt], made: Tokenizer, recipe: Recipe, folder: DatasetDir) -> DatasetInfo:
    """Write dataset.json, which makes the dataset complete, and drop what only an unfinished one needs."""
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

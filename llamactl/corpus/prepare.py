"""Prepare a dataset: pieces become token shards in parallel, one shard per piece and split; dataset.json is written last."""

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor

import numpy as np

from llamactl.corpus import dedup, mixture
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, InputFile, Recipe
from llamactl.corpus.dataset_tokenizer import Learning, TokenizerReady, store_tokenizer
from llamactl.corpus.documents import SPLITS, with_holdout
from llamactl.corpus.engines import Engine, local_engine
from llamactl.corpus.inputs import Hashed, hash_inputs
from llamactl.corpus.kinds import PACKED
from llamactl.corpus.pieces import Job, Receipt, inspect_piece, make_piece, marks_digest, token_dtype
from llamactl.corpus.seal import check_bad_docs, check_complete, check_tokenizer, seal_dataset
from llamactl.corpus.sources import Piece, Source
from llamactl.errors import DataError, DiskFull, OutOfSpace
from llamactl.storage import atomic, disk, locks
from llamactl.tokenizer import bpe, encoders
from llamactl.tokenizer.bpe import read_tokenizer

USUAL_BYTES_PER_TOKEN = 4.0  # English in GPT-2's BPE or one trained on it, a slight underestimate
USUAL_COMPRESSION = 3.0


@dataclass(frozen=True)
class Estimated:
    """The bytes that the shards will take on disk (0: not known), and the bytes that are free."""

    needed: int
    free: int


@dataclass(frozen=True)
class PieceDone:
    """A piece is on disk; `kept` if an earlier run made it, `stale` says why earlier work was not reused."""

    piece: int
    pieces: int
    receipt: Receipt
    kept: bool
    stale: str = ""


@dataclass(frozen=True)
class Sealed:
    """The dataset is complete; `kept` if it was so before."""

    info: DatasetInfo
    kept: bool


Event = Estimated | Learning | TokenizerReady | PieceDone | Sealed


@dataclass(frozen=True)
class Share:
    """The pieces to make: every `of`-th from `number` (counted from 1) on; 1 of 1 is all."""

    number: int = 1
    of: int = 1

    def of_all(self, pieces: Sequence[int]) -> Sequence[int]:
        """Select this share's pieces."""
        return pieces[self.number - 1 :: self.of]


def prepare_dataset(
    source: Source, recipe: Recipe, folder: DatasetDir, engine: Engine, encoder: str = "auto", share: Share = Share()
) -> Iterator[Event]:
    """Make the dataset, reusing what an earlier, interrupted call finished; a share of it is made but not sealed.

    Raises DataError when `folder` is complete but not what is asked for, or when the source can't be read, OutOfSpace
    when the disk is too small, and InUse when another process makes it.
    """
    if folder.info_path.exists():
        yield Sealed(check_complete(source, recipe, folder), kept=True)
        return
    estimate = estimate_disk(source, recipe, folder)
    yield estimate
    try:
        with locks.hold_lock(folder.lock_path, shared=share != Share()):
            yield from _unless_sealed(source, recipe, folder, _make(source, recipe, folder, engine, encoder, share))
    except DiskFull as error:
        total = f" The whole dataset takes some {estimate.needed / 1e6:,.1f} MB." if estimate.needed else ""
        raise DiskFull(error.what, f"{error.why}{total}", error.fix) from error


def _unless_sealed(source: Source, recipe: Recipe, folder: DatasetDir, work: Iterator[Event]) -> Iterator[Event]:
    """Do the work under the lock, unless another process sealed the dataset while this one waited for the lock."""
    if folder.info_path.exists():
        yield Sealed(check_complete(source, recipe, folder), kept=True)
    else:
        yield from work


def _make(source: Source, recipe: Recipe, folder: DatasetDir, engine: Engine, encoder: str, share: Share) -> Iterator[Event]:
    is_all, source = share == Share(), with_holdout(source, recipe)
    # Drafts are left by a process that was killed; those of a live process are locked and stay.
    for drafts in (folder.path, folder.lock_path.parent, *(folder.path / split for split in SPLITS)):
        atomic.remove_stale_drafts(drafts)
    ready, digest = yield from store_tokenizer(source, recipe, folder, encoders.get_encoder(encoder), alone=is_all)
    yield ready
    numbers = range(len(source.pieces))
    # Whether a document is a duplicate depends on all pieces, so even a share hashes all of them.
    jobs = _jobs(source, recipe, folder, ready.encoder, digest, numbers if is_all or recipe.dedup else share.of_all(numbers))
    if recipe.dedup:
        with closing(engine(dedup.hash_documents, jobs)) as hashes:
            jobs = dedup.mark_duplicates(jobs, list(hashes))
    if is_all:
        yield from _make_all(source, jobs, engine)
        return
    local = [job for job in jobs if job.piece in share.of_all(numbers)]
    with closing(engine(make_piece, local)) as done:
        for job, made in zip(local, done, strict=True):
            yield PieceDone(job.piece, len(local), *made)


def finish_dataset(source: Source, recipe: Recipe, folder: DatasetDir, engine: Engine | None = None) -> Iterator[Event]:
    """Seal a dataset whose pieces were made in shares, perhaps on other machines.

    Raises DataError that names the pieces which are missing, damaged or made from something else, InUse while a share is made.
    """
    if folder.info_path.exists():
        yield Sealed(check_complete(source, recipe, folder), kept=True)
        return
    if not folder.lock_path.parent.is_dir():
        raise DataError(f"There are no pieces in {folder.path}.", "No share was made.", "Run each: --piece 1/N to N/N")
    with locks.hold_lock(folder.lock_path):
        yield from _unless_sealed(source, recipe, folder, _finish(source, recipe, folder, engine or local_engine(1)))


def _finish(source: Source, recipe: Recipe, folder: DatasetDir, engine: Engine) -> Iterator[Event]:
    source, digest = with_holdout(source, recipe), read_tokenizer(folder.tokenizer_path, folder.path).digest
    check_tokenizer(recipe, folder, digest)
    jobs = _jobs(source, recipe, folder, encoders.get_encoder("auto"), digest, range(len(source.pieces)))
    if recipe.dedup:
        jobs = [replace(job, duplicates=marks_digest(folder, job.piece)) for job in jobs]
    with closing(engine(inspect_piece, jobs)) as found:
        receipts = _collect_receipts(jobs, found)
    for number, receipt in enumerate(receipts):
        yield PieceDone(number, len(jobs), receipt, kept=True)
    yield Sealed(seal_dataset(jobs, receipts), kept=False)


def _collect_receipts(jobs: list[Job], inspected: Iterator[Receipt | str]) -> list[Receipt]:
    """Return the receipts that `max_tokens` needs, the last one cut to it; raises DataError that names pieces without one."""
    receipts: list[Receipt] = []
    missing: list[str] = []
    remaining = jobs[0].most
    for job, found in zip(jobs, inspected, strict=False):
        too_many = remaining <= 0 or (isinstance(found, Receipt) and found.tokens > remaining)
        # How far a piece is cut depends on all those before it, so nothing is made while one of them is missing.
        if too_many and missing:
            break
        receipt = make_piece(replace(job, most=remaining)).receipt if too_many else found
        if isinstance(receipt, str):
            missing.append(f"{job.piece} ({receipt.rstrip('.')})" if receipt else str(job.piece))
            continue
        remaining -= receipt.tokens
        receipts.append(receipt)
        if receipt.cut:
            break
    if missing:
        names = ", ".join(missing[:9]) + (" ..." if len(missing) > 9 else "")
        what = f"{len(missing)} of {len(jobs)} pieces are missing: {names}."
        raise DataError(what, "A share was not run, did not finish, or had other options.", "Run each: --piece 1/N to N/N")
    return receipts


def _jobs(
    source: Source, recipe: Recipe, folder: DatasetDir, encoder: str, tokenizer: str, numbers: Sequence[int]
) -> list[Job]:
    """Build the jobs of some pieces; each contains the hashes of the files that it reads."""
    most, hashed = recipe.max_tokens or sys.maxsize, hash_inputs(source.pieces[piece] for piece in numbers)
    return [
        Job(source.for_piece(piece), piece, recipe, folder, most, encoder, tokenizer, _of_piece(source.pieces[piece], hashed))
        for piece in numbers
    ]


def _of_piece(piece: Piece, hashed: Hashed) -> dict[str, InputFile]:
    return {part.location: hashed[part.location] for part in piece if part.location in hashed}


def _make_all(source: Source, jobs: list[Job], engine: Engine) -> Iterator[Event]:
    """Make the pieces of each source up to its share of the tokens, then seal the dataset; usually there is one source."""
    limit, made = Fraction(jobs[0].most), dict[int, Receipt]()
    for component in mixture.order_by_scarcity(source):
        local = [replace(jobs[piece], most=floor(limit * component.weight)) for piece in component.piece_numbers]
        with closing(_make_pieces(local, engine)) as events:
            for event in events:
                made[event.piece] = event.receipt
                yield event
        if not event.receipt.cut:
            tokens = sum(made[piece].tokens for piece in component.piece_numbers)
            if source.mixed and not tokens:
                why = "Its documents are empty, left out, or repeat those of other sources."
                raise DataError(f"There is no text in {component.name}.", why, "Leave it and its weight out.")
            limit = min(limit, tokens / component.weight)
    kept: list[Receipt] = []
    for component in source.components:
        receipts = [made[piece] for piece in component.piece_numbers if piece in made]
        kept += _cut_receipts(jobs[component.first_piece :], receipts, floor(limit * component.weight))
    yield Sealed(seal_dataset(jobs, kept), kept=False)


def _cut_receipts(jobs: Sequence[Job], receipts: Sequence[Receipt], most: int) -> list[Receipt]:
    """Return the receipts of the first `most` tokens, the last of them made again where it holds more."""
    kept: list[Receipt] = []
    for job, receipt in zip(jobs, receipts, strict=False):
        kept.append(receipt if receipt.tokens <= most else make_piece(replace(job, most=most)).receipt)
        most -= kept[-1].tokens
        if kept[-1].cut:
            break
    return kept


def estimate_disk(source: Source, recipe: Recipe, folder: DatasetDir) -> Estimated:
    """Estimate the bytes to be written from the size of the inputs; raises OutOfSpace when the disk has less free."""
    known = [tokens for component in source.components if (tokens := _estimate_tokens(component, recipe))]
    tokens = min(min(known, default=0), recipe.max_tokens or sys.maxsize)
    done = sum(path.stat().st_size for path in folder.path.glob("*/*.npy"))
    width = np.dtype(token_dtype(bpe.parse_bpe_size(recipe.tokenizer) or 0)).itemsize
    estimate = Estimated(round(tokens * width), disk.free_bytes(folder.path) + done)
    if estimate.needed > estimate.free:
        why = f"The shards will take some {estimate.needed / 1e9:.3g} GB; {estimate.free / 1e9:.3g} GB are free."
        fix = "Take fewer with --max-tokens, or set LLAMACTL_HOME to another disk."
        raise OutOfSpace(f"Not enough disk space for {folder.path}.", why, fix)
    return estimate


def _estimate_tokens(source: Source, recipe: Recipe) -> float:
    """Estimate the tokens of a source from its bytes, or those of the mixture for which a component suffices; 0: not known."""
    packed = (part.size * (USUAL_COMPRESSION if part.location.lower().endswith(PACKED) else 1) for part in source.parts)
    tokens = sum(packed) / (1 if recipe.tokenizer == "bytes" else USUAL_BYTES_PER_TOKEN)
    return float((tokens or source.usual_tokens) / source.weight)


def _make_pieces(jobs: list[Job], engine: Engine) -> Generator[PieceDone, None, None]:
    """Make the pieces and yield them in order, each cut so that together they hold at most `max_tokens`."""
    remaining, bad = jobs[0].most, 0
    # A generator that is not run to its end must be closed, which ends the workers.
    with closing(engine(make_piece, jobs)) as done:
        for job, made in zip(jobs, done, strict=False):
            # Pieces are made in parallel, without knowing what the others hold, so the last one may have to be made again.
            if made.receipt.tokens > remaining:
                made = make_piece(replace(job, most=remaining))._replace(stale=made.stale)
            remaining -= made.receipt.tokens
            bad += made.receipt.skipped.get("unreadable", 0)
            # Sealing counts them all; this only ends early what it would refuse.
            check_bad_docs(bad, job.recipe)
            yield PieceDone(job.piece, len(jobs), *made)
            if made.receipt.cut:
                return

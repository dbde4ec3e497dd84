"""The end of a preparation: declare a dataset complete, and check whether a complete one is what was asked for."""

import os
import shutil
import time
from collections import Counter
from contextlib import suppress

import numpy as np

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, Inputs, Recipe
from llamactl.corpus.inputs import describe_changes, hash_inputs, list_inputs
from llamactl.corpus.memmap import HEADER
from llamactl.corpus.pieces import Job, Receipt, token_dtype
from llamactl.corpus.sources import Source
from llamactl.errors import DataError
from llamactl.storage import atomic
from llamactl.storage.records import check_file
from llamactl.tokenizer import bpe, encoders


def check_complete(source: Source, recipe: Recipe, folder: DatasetDir) -> DatasetInfo:
    """Check that a sealed dataset matches the request; raises DataError that says what it was made from instead."""
    info = folder.open().info
    fix = f"Use --name NAME, or remove {folder.path}."
    # The tokenizer of a file is compared by its content: the folder of a run's newest checkpoint is another one each time.
    by_content = {"inputs"} if _names_tokenizer(recipe) else {"inputs", "tokenizer"}
    if differ := info.recipe.differences(recipe) - by_content:
        raise DataError(
            f"{folder.path} is there already.", f"It was made with other settings: {', '.join(sorted(differ))}.", fix
        )
    check_tokenizer(recipe, folder, info.tokenizer)
    files = list_inputs(hash_inputs(source.pieces))
    changed = describe_changes(info.inputs.files, files) if info.inputs else ""
    if changed or info.recipe.inputs != recipe.inputs:
        why = changed or f"It was made from {info.recipe.inputs}; now that is {recipe.inputs}."
        raise DataError(f"{folder.path} is there already, made from other inputs.", why, fix)
    with suppress(OSError):  # it may be another person's, or on a disk that is read-only
        # What was asked for last is the newest, which the next command takes. By the precise clock: `touch` takes the kernel's,
        # which may stand still since another dataset was sealed.
        os.utime(folder.info_path, ns=(time.time_ns(), time.time_ns()))
    shutil.rmtree(folder.lock_path.parent, ignore_errors=True)  # left by a process that was killed right after the seal
    return info


def check_tokenizer(recipe: Recipe, folder: DatasetDir, digest: str) -> None:
    """Raise DataError when a tokenizer's file is no longer the one that a dataset was made with."""
    if not _names_tokenizer(recipe) and bpe.load_tokenizer(recipe.tokenizer).digest != digest:
        what = f"{folder.path} was made with another tokenizer than {recipe.tokenizer} is now."
        raise DataError(what, "The content is another one.", f"Use --name NAME, or remove {folder.path}.")


def _names_tokenizer(recipe: Recipe) -> bool:
    """Check whether the tokenizer is given by a name that says it all, or learned from the inputs, and not by a file."""
    return recipe.tokenizer in bpe.TOKENIZERS or bool(bpe.parse_bpe_size(recipe.tokenizer))


def seal_dataset(jobs: list[Job], receipts: list[Receipt]) -> DatasetInfo:
    """Write dataset.json, which makes the dataset complete, and remove what only an unfinished one needs.

    Checks that all pieces came from one recipe, one tokenizer and these inputs, and that the shards exist with the sizes in
    their receipts; their content was read in full when they were written or reused. Raises DataError.
    """
    recipe, folder = jobs[0].recipe, jobs[0].folder
    tokenizer, _ = encoders.open_tokenizer(jobs[0].encoder, folder.tokenizer_path, jobs[0].tokenizer)
    numbered = {job.piece: job for job in jobs}
    for receipt in receipts:
        _check_receipt(numbered[receipt.origin.piece], receipt, token_dtype(tokenizer.vocab_size))
    skipped = sum((Counter(receipt.skipped) for receipt in receipts), Counter[str]())
    # Only here are all pieces known, whichever processes made them.
    check_bad_docs(skipped["unreadable"], recipe)
    files = list_inputs({path: file for job in jobs for path, file in job.inputs.items()})
    info = DatasetInfo(
        recipe=recipe,
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        dtype=token_dtype(tokenizer.vocab_size),
        # Empty shards are removed below: a piece may have no text in a split.
        shards=tuple(shard for receipt in receipts for shard in receipt.shards if shard.tokens),
        documents_read=sum(receipt.documents_read for receipt in receipts),
        skipped=dict(sorted(skipped.items())),
        skipped_bytes=dict(sorted(sum((Counter(receipt.skipped_bytes) for receipt in receipts), Counter()).items())),
        inputs=Inputs(files=tuple(files.values())),
    ).with_digest()
    _check_splits(info)
    known = {shard.file for shard in info.shards}
    # Before dataset.json exists: `verify` reports shards that it does not list, such as those behind a token limit.
    for path in [*folder.path.glob("*/[0-9]*.npy")]:
        if f"{path.parent.name}/{path.name}" not in known:
            path.unlink()
    # From here on the dataset is complete, also if the process ends before the receipts are removed.
    atomic.write_file(folder.info_path, info.as_file())
    shutil.rmtree(folder.receipt(0).parent, ignore_errors=True)
    return info


def _check_splits(info: DatasetInfo) -> None:
    """Raise DataError when a split has no text."""
    if not info.total("train", "tokens"):
        why = f"Documents read: {info.documents_read}; the first one with text is held out for validation."
        raise DataError("There is no text to train on.", why, "Give it more than one document, or more --max-tokens.")
    if not info.total("val", "tokens"):
        why = f"Documents read: {info.documents_read}; they are too short or too similar to hold out a part of them."
        raise DataError("There is no text to validate on.", why, "Give it more than one document, or more --max-tokens.")


def check_bad_docs(bad: int, recipe: Recipe) -> None:
    """Raise DataError when more documents can't be read than the recipe allows."""
    if bad > recipe.max_bad_docs:
        why = f"--max-bad-docs allows {recipe.max_bad_docs:,}."
        raise DataError(f"{bad:,} documents can't be read.", why, f"Leave them out: --max-bad-docs {bad}")


def _check_receipt(job: Job, receipt: Receipt, dtype: str) -> None:
    """Raise DataError for a receipt of another piece, or a shard whose size is not the one in its receipt."""
    fix = "Run the same command again; valid pieces are kept."
    if receipt.origin != job.origin.model_copy(update={"most": receipt.origin.most}):
        raise DataError(f"{job.folder.receipt(job.piece)} is of another piece.", "It names other inputs or options.", fix)
    for shard in receipt.shards:
        path, expected = job.folder.path / shard.file, HEADER + np.dtype(dtype).itemsize * shard.tokens
        if (size := check_file(path, job.folder.path)) != expected:
            raise DataError(f"{path} is damaged.", f"It has {size:,} bytes; its receipt says {expected:,}.", fix)

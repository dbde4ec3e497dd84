"""Make a dataset of conversations: rows of as many tokens as the model's context, each of which is a window of its own."""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from xxhash import xxh3_64_intdigest

from llamactl.corpus.batches import Windows, permuted_index
from llamactl.corpus.conversations import Skipped, read_conversation
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, Recipe, Shard, Split
from llamactl.corpus.documents import SPLITS
from llamactl.corpus.packing import Row, RowPacker
from llamactl.corpus.pieces import token_dtype
from llamactl.corpus.row_writer import RowWriter
from llamactl.corpus.rows import RowSource
from llamactl.errors import DataError
from llamactl.storage import atomic, locks
from llamactl.storage.records import to_json
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import ROLE_TOKENS, TURN_END, Message, encode_chat

REPORTED = 2_000  # conversations between two events
TOO_LONG = "longer than the context"
FORMS = 'Rows are {"messages": [{"role": "user", "content": "..."}, ...]}, ShareGPT or prompt and response: docs/chat.md'


@dataclass(frozen=True)
class Packing:
    """The progress of a preparation: conversations read, how many were left out by reason, and tokens written."""

    read: int
    skipped: dict[str, int]
    tokens: int


@dataclass(frozen=True)
class Packed:
    """The dataset is complete; `kept` if it was so before. `filled` is the share of its rows that conversations fill."""

    info: DatasetInfo
    kept: bool
    filled: float = 0.0
    cut: int = 0
    text_rows: int = 0


@dataclass(frozen=True)
class Mix:
    """A dataset of text, and the share of the rows that it gives."""

    text: Dataset
    share: float


@dataclass
class _Tally:
    """What was read, left out, cut and filled so far."""

    read: int = 0
    cut: int = 0
    rows: int = 0
    tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_bytes: Counter[str] = field(default_factory=Counter)


def prepare_conversations(
    source: RowSource, recipe: Recipe, tokenizer: Tokenizer, mix: Mix | None, folder: DatasetDir
) -> Iterator[Packing | Packed]:
    """Make a dataset of conversations; `tokenizer` has the roles. One that is complete is kept, if it is what is asked for.

    Raises DataError when it is not, or when there is nothing to train on or to hold out; InUse when another process makes it.
    """
    if not folder.info_path.exists():
        with locks.hold_lock(folder.lock_path):
            if not folder.info_path.exists():
                yield from _make(source, recipe, tokenizer, mix, folder)
                return
    yield Packed(_check_complete(recipe, folder), kept=True)


def _check_complete(recipe: Recipe, folder: DatasetDir) -> DatasetInfo:
    info = folder.open().info
    if differ := info.recipe.differences(recipe):
        why = f"It was made with other settings: {', '.join(sorted(differ))}."
        raise DataError(f"{folder.path} is there already.", why, f"Use --data NAME, or remove {folder.path}.")
    return info


def _make(
    source: RowSource, recipe: Recipe, tokenizer: Tokenizer, mix: Mix | None, folder: DatasetDir
) -> Iterator[Packing | Packed]:
    for drafts in (folder.path, *(folder.path / split for split in SPLITS)):
        atomic.remove_stale_drafts(drafts)
    atomic.write_file(folder.tokenizer_path, tokenizer.description)
    tally, width = _Tally(), recipe.row_tokens
    with ExitStack() as stack:
        writers = {split: stack.enter_context(RowWriter(folder, split, tokenizer, width)) for split in SPLITS}
        packers = {split: RowPacker(width, tokenizer.end) for split in SPLITS}
        for split, ids in _conversations(source, recipe, tokenizer, tally):
            tally.tokens += len(ids)
            for row in packers[split].add(ids):
                writers[split].add(row)
            if tally.read % REPORTED == 0:
                yield Packing(tally.read, dict(tally.skipped), tally.tokens)
        for split, packer in packers.items():
            for row in packer.finish():
                writers[split].add(row)
        rows = sum(writer.rows for writer in writers.values())
        _check_enough(source, tally, writers)
        text_rows = _add_text(writers["train"], mix, width) if mix else 0
    info = _seal(recipe, tokenizer, tally, [shard for split in SPLITS for shard in writers[split].shards], folder)
    yield Packed(info, False, tally.tokens / (rows * width), tally.cut, text_rows)


def _seal(recipe: Recipe, tokenizer: Tokenizer, tally: _Tally, shards: list[Shard], folder: DatasetDir) -> DatasetInfo:
    """Write dataset.json, which makes the dataset complete, and remove what an attempt that was stopped has left."""
    info = DatasetInfo(
        recipe=recipe,
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        dtype=token_dtype(tokenizer.vocab_size),
        shards=tuple(shards),
        documents_read=tally.read,
        skipped=dict(sorted(tally.skipped.items())),
        skipped_bytes={reason: size for reason, size in sorted(tally.skipped_bytes.items()) if size},
    ).with_digest()
    known = {shard.file for shard in shards}
    for path in [*folder.path.glob("*/[0-9]*.npy")]:
        if f"{path.parent.name}/{path.name}" not in known:
            path.unlink()
    atomic.write_file(folder.info_path, info.as_file())
    shutil.rmtree(folder.lock_path.parent, ignore_errors=True)
    return info


def _conversations(source: RowSource, recipe: Recipe, tokenizer: Tokenizer, tally: _Tally) -> Iterator[tuple[Split, list[int]]]:
    """Yield the split and the ids of each conversation; the others are counted with the reason why they are left out.

    One is held out by the hash of what is said, and so is the first one, with all that are equal.
    """
    first: int | None = None
    for row in source:
        tally.read += 1
        found = row if isinstance(row, Skipped) else read_conversation(row)
        if not isinstance(found, Skipped):
            rank = _hash(found)
            ids = _encode(found, tokenizer, recipe.row_tokens, tally)
            if ids:
                first = rank if first is None else first
                yield ("val" if rank == first or rank / 2**64 < recipe.val_fraction else "train"), ids
                continue
            found = Skipped(TOO_LONG, sum(len(each["content"].encode()) for each in found))
        tally.skipped[found.reason] += 1
        tally.skipped_bytes[found.reason] += found.size


def _hash(messages: list[Message]) -> int:
    return xxh3_64_intdigest(to_json([[each["role"], each["content"]] for each in messages]).encode())


def _encode(messages: list[Message], tokenizer: Tokenizer, width: int, tally: _Tally) -> list[int]:
    """Encode a conversation, cut after the last reply that fits into `width` tokens; empty where none does."""
    ids = encode_chat(tokenizer, messages)
    # Where no token begins a text, the one that ends it keeps conversations apart.
    separator = [] if tokenizer.start else [tokenizer.end]
    room = width - len(separator)
    if len(ids) > room:
        tally.cut += 1
        ids = ids[: _end_of_replies(ids[:room], tokenizer)]
        tally.cut -= not ids
    return ids and ids + separator


def _end_of_replies(ids: list[int], tokenizer: Tokenizer) -> int:
    """Return the length of a conversation up to its last complete reply; 0 without one."""
    openings = {tokenizer.controls[name] for name in ROLE_TOKENS if name != TURN_END}
    reply, turn_end = tokenizer.controls["<|assistant|>"], tokenizer.controls[TURN_END]
    role = length = 0
    for place, token in enumerate(ids):
        role = token if token in openings else role
        length = place + 1 if token == turn_end and role == reply else length
    return length


def _check_enough(source: RowSource, tally: _Tally, writers: dict[Split, RowWriter]) -> None:
    """Raise DataError where there is nothing to train on, or nothing to hold out."""
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in tally.skipped.most_common())
    if not writers["val"].rows:
        why = f"Rows: {tally.read:,}" + (f"; left out: {reasons}." if reasons else ".")
        raise DataError(f"There are no conversations in {source.name}.", why, FORMS)
    if not writers["train"].rows:
        what = f"There are too few conversations in {source.name}: each of them is held out for validation."
        raise DataError(what, f"Left out: {reasons}." if reasons else "", "Give it more of them.")


def _add_text(writer: RowWriter, mix: Mix, width: int) -> int:
    """Add rows of text, each a window of the dataset, up to a share of all rows; return how many there were."""
    windows = Windows(mix.text.train, width)
    wanted = min(len(windows), round(writer.rows * mix.share / (1 - mix.share)))
    # Spread over the whole text, in a fixed order, and none twice.
    for number in np.sort(permuted_index(np.arange(wanted), max(1, len(windows)), f"{mix.text.info.digest} mix")):
        tokens = windows.batch(np.array([number])).inputs[0].numpy().astype(np.uint32)
        writer.add(Row(tokens, 0))
    return wanted

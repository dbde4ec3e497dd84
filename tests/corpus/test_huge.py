"""15 trillion tokens in sparse files: they open at once, are dealt out over 1,024 processes, and nothing grows with them."""

import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llamactl.corpus.batches import ROUNDS, Batches, Windows, permuted_index
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, Recipe, Shard
from llamactl.corpus.memmap import HEADER
from llamactl.storage import atomic
from llamactl.tokenizer.bpe import byte_tokenizer

TOKENS, PIECES, HELD_OUT = 15_000_000_000_000, 10_000, 1_000_000  # the last: tokens for validation in each piece
TOKEN, CONTEXT, RANKS = np.dtype(np.uint16), 1_024, 1_024
LAST = 5 * 2**30 + 1  # tokens in the last shard for training, whose places need more than 32 bits
MIB = 1 << 20

OPENING = """
import json, sys, time
from pathlib import Path
from llamactl.corpus.dataset import DatasetDir

def memory(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))

before, times = memory("VmRSS"), []
for _ in range(3):
    started = time.process_time()  # other work does not count
    dataset = DatasetDir(Path(sys.argv[1])).open()
    times.append(time.process_time() - started)
print(json.dumps({"seconds": min(times), "kib": memory("VmHWM") - before, "shards": len(dataset.train)}))
"""


def sparse(path: Path, tokens: int) -> Shard:
    """A shard of zeros that takes no disk."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(TOKEN), "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(HEADER + TOKEN.itemsize * tokens)
    name = f"{path.parent.name}/{path.name}"
    return Shard(file=name, tokens=tokens, documents=tokens // 700, text_bytes=tokens - tokens // 700, sha256="0" * 64)


def lengths() -> Iterator[tuple[str, int]]:
    """Every shard's file and tokens: pieces of about 1.5 billion tokens, each with its share for validation."""
    rest = TOKENS - LAST - PIECES * HELD_OUT
    ends = [rest * number // (PIECES - 1) for number in range(PIECES)]
    train = [*np.diff(ends).tolist(), LAST]
    for piece in range(PIECES):
        yield f"train/{piece:05d}.npy", train[piece]
        yield f"val/{piece:05d}.npy", HELD_OUT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatasetDir]:
    """A sealed dataset of 15 trillion tokens, the very last window of which counts from 1 on, modulo 256."""
    made = DatasetDir(tmp_path_factory.mktemp("huge") / "web")
    for split in ("train", "val"):
        (made.path / split).mkdir(parents=True)
    try:
        shards = tuple(sparse(made.path / file, tokens) for file, tokens in lengths())
    except OSError as error:
        pytest.skip(f"this file system has no room for sparse files of such sizes: {error.strerror}")
    with (made.path / shards[-2].file).open("r+b") as file:
        file.seek(-TOKEN.itemsize * (CONTEXT + 1), 2)
        file.write((np.arange(1, CONTEXT + 2) % 256).astype(TOKEN).tobytes())
    made.tokenizer_path.write_text(byte_tokenizer().description, "utf-8")
    info = DatasetInfo(
        recipe=Recipe(source="web", inputs="", tokenizer="bytes", val_fraction=HELD_OUT * PIECES / TOKENS),
        tokenizer=atomic.sha256(made.tokenizer_path),
        vocab_size=byte_tokenizer().vocab_size,
        dtype="uint16",
        shards=shards,
        documents_read=sum(shard.documents for shard in shards),
        skipped={},
    )
    made.info_path.write_text(info.with_digest().model_dump_json(indent=1) + "\n")
    yield made
    shutil.rmtree(made.path)


@pytest.fixture(scope="module")
def opened(folder: DatasetDir) -> Dataset:
    return folder.open()


@pytest.fixture(scope="module")
def windows(opened: Dataset) -> Windows:
    return Windows(opened.train, CONTEXT)


def test_it_opens_in_under_a_second_and_little_memory(folder: DatasetDir) -> None:
    answer = subprocess.run([sys.executable, "-c", OPENING, str(folder.path)], check=True, capture_output=True)
    found = json.loads(answer.stdout)
    assert found["shards"] == PIECES
    assert found["seconds"] < 1
    assert found["kib"] * 1024 < 100 * MIB


def test_it_is_15_trillion_tokens(opened: Dataset, windows: Windows) -> None:
    assert opened.info.total("train", "tokens") + opened.info.total("val", "tokens") == TOKENS
    assert TOKENS // CONTEXT * 0.999 < len(windows) < TOKENS // CONTEXT


STEPS = {"first": 0.0, "middle": 0.5, "seam": 1.0, "after the seam": 1.5}


@pytest.mark.parametrize("per_step", [4_096, 4_099])
@pytest.mark.parametrize("epochs", STEPS.values(), ids=STEPS)
def test_1024_ranks_deal_out_a_step(windows: Windows, per_step: int, epochs: float) -> None:
    """Each window of the step belongs to one rank, and no rank has two more than another."""
    step = int(epochs * len(windows)) // per_step
    ranks = [Batches(windows, per_step, "digest 0", rank, RANKS) for rank in range(RANKS)]
    dealt = [batches.rank_window_ids(step) for batches in ranks]
    assert {len(part) for part in dealt} == {per_step // RANKS, -(-per_step // RANKS)}
    dealt_out = np.concatenate(dealt)
    expected = order(np.arange(step * per_step, (step + 1) * per_step), len(windows))
    assert (np.sort(dealt_out) == np.sort(expected)).all()
    seam = step * per_step < len(windows) < (step + 1) * per_step
    assert seam == (epochs == 1)
    assert seam or len(np.unique(dealt_out)) == per_step  # two epochs may have a window in common
    assert dealt_out.min() >= 0
    assert dealt_out.max() < len(windows)


def order(places: np.ndarray, total: int) -> np.ndarray:
    """Which windows stand at some places of an endless order of epochs."""
    return np.array(
        [permuted_index(np.array([place % total]), total, f"digest 0 {place // total}")[0] for place in places.tolist()]
    )


def test_steps_of_an_epoch_share_no_window(windows: Windows) -> None:
    batches = Batches(windows, 4_096, "digest 0")
    steps = np.random.default_rng(0).choice(len(windows) // 4_096, 500, replace=False)
    found = np.concatenate([batches.window_ids(int(step)) for step in (0, *steps, len(windows) // 4_096 - 1)])
    assert len(np.unique(found)) == len(found) == 502 * 4_096
    assert found.max() > 2**33


def test_a_step_of_1024_ranks_takes_little_memory(windows: Windows) -> None:
    """What the numbers and the batches of a process take does not depend on how much there is to choose from."""
    tracemalloc.start()
    try:
        for rank in range(0, RANKS, 64):
            batches = Batches(windows, 4_099, "digest 0", rank, RANKS)
            for step in (0, len(windows) // 2 // 4_099, len(windows) // 4_099, 10**9):
                found = batches.micro_batches(step, most=2)
                assert [batch.inputs.shape for batch in found] == [(2, CONTEXT), (2, CONTEXT), (1, CONTEXT)]
                assert sum(batch.share for batch in found) == pytest.approx((5 if rank < 3 else 4) / 4_099)
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


def test_windows_are_read_up_to_the_last(windows: Windows) -> None:
    last = len(windows) - 1
    ends = np.cumsum([(length - 1) // CONTEXT for file, length in lengths() if file.startswith("train")])
    assert len(windows) == ends[-1] > 2**33
    inputs, targets, *_ = windows.batch(np.array([0, ends[0] - 1, ends[0], 2**32, 2**33, ends[-2] - 1, ends[-2], last - 1]))
    assert inputs.shape == targets.shape == (8, CONTEXT)
    assert not inputs.any()
    assert not targets[:-1].any()
    assert int(targets[-1, -1]) == 1  # the token that the last window starts with
    inputs, targets, *_ = windows.batch(np.array([last]))
    assert inputs[0].tolist() == [number % 256 for number in range(1, CONTEXT + 1)]
    assert targets[0].tolist() == [number % 256 for number in range(2, CONTEXT + 2)]
    with pytest.raises(IndexError):
        windows.batch(np.array([len(windows)]))


# The bijection


def unshuffled(found: np.ndarray, size: int, key: str) -> np.ndarray:
    """The places that a permutation puts windows at, by its rounds in reverse."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype=np.uint64)
    places = backwards(found.astype(np.uint64), half, keys)
    while (outside := places >= size).any():
        places[outside] = backwards(places[outside], half, keys)
    return places.astype(np.int64)


def backwards(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys[::-1]:
        mixed = (left ^ key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right ^ ((mixed >> np.uint64(32)) & mask), left
    return (left << np.uint64(half)) | right


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_no_overlap_and_no_hole_by_the_inverse(windows: Windows, epoch: int) -> None:
    """Every place leads to a window that leads back, and every window to a place that leads back: a bijection."""
    total, key = len(windows), f"digest 0 {epoch}"
    ends = np.array([*range(1_000), *range(total - 1_000, total), 2**32 - 1, 2**32, 2**33])
    sample = np.concatenate([ends, np.random.default_rng(epoch).integers(0, total, 1_000_000)])
    for there, back in ((permuted_index, unshuffled), (unshuffled, permuted_index)):
        found = there(sample, total, key)
        assert found.min() >= 0
        assert found.max() < total
        assert (back(found, total, key) == sample).all()


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 4_097, 65_536, 70_001, 2_000_003])
def test_the_inverse_undoes_the_whole_of_small_ones(size: int) -> None:
    places = np.arange(size)
    found = permuted_index(places, size, "key")
    assert (np.bincount(found, minlength=size) == 1).all()
    assert (unshuffled(found, size, "key") == places).all()

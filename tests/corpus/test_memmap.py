"""Shards as arrays: what opening checks, what reading checks, and how many files that takes."""

import os
import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llamactl.corpus.memmap import HEADER, Shards
from llamactl.errors import DataError, OutOfSpace
from tests.processes import forked, status

LENGTHS = {f"train/{number:05d}.npy": 10 + number for number in range(100)}
ORDER = np.random.default_rng(0).permutation(np.tile(np.arange(100), 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards whose tokens are their own numbers."""
    (tmp_path / "train").mkdir()
    for number, (file, length) in enumerate(LENGTHS.items()):
        np.save(tmp_path / file, np.full(length, number, np.uint16))
    return tmp_path


def test_shards_are_arrays_in_a_row(folder: Path) -> None:
    shards = Shards(folder, LENGTHS, "uint16")
    assert len(shards) == 100
    assert shards.lengths == tuple(map(len, shards)) == tuple(LENGTHS.values())
    assert [int(shard[-1]) for shard in shards] == list(range(100))
    assert [int(shard[0]) for shard in shards[10:40:15]] == [10, 25]
    assert (shards[-1] == 99).all()
    assert isinstance(shards[0], np.memmap)
    with pytest.raises(IndexError):
        shards[100]


def test_a_file_is_read_only_when_its_shard_is(folder: Path) -> None:
    path = folder / "train" / "00007.npy"
    whole = path.read_bytes()
    path.write_bytes(bytes(HEADER) + whole[HEADER:])
    shards = Shards(folder, LENGTHS, "uint16")
    assert len(shards[6]) == 16
    with pytest.raises(DataError, match=r"00007\.npy is missing or damaged"):
        shards[7]
    path.write_bytes(whole.replace(b"<u2", b"<i2"))
    with pytest.raises(DataError, match="int16"):
        shards[7]
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        shards[7]


@pytest.mark.parametrize(
    "change", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole.replace(b"17,", b"16,")[:-2]]
)
def test_another_size_is_found_at_opening(folder: Path, change: object) -> None:
    path = folder / "train" / "00007.npy"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"00007\.npy"):
        Shards(folder, LENGTHS, "uint16")


def limited(files: int, folder: Path) -> None:
    os.closerange(3, 4_096)  # what tests before have open
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    shards = Shards(folder, LENGTHS, "uint16")
    for number in ORDER:
        assert (shards[number] == number).all()


def test_more_shards_than_a_process_may_have_files(folder: Path) -> None:
    assert status(forked(lambda: limited(64, folder))) == 0


def test_no_room_for_a_file_is_no_damage(folder: Path) -> None:
    assert status(forked(lambda: limited(3, folder))) == OutOfSpace.code


def test_what_is_around_a_window_is_not_read_with_it(folder: Path) -> None:
    """The kernel knows that the map is read here and there (rr); it would read megabytes for a window of 2 kB."""
    shard = Shards(folder, LENGTHS, "uint16")[7]
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    (flags,) = [after.split("\n")[0].split() for before, after in pairwise(maps) if "train/00007.npy" in before]
    assert "rr" in flags
    assert len(shard) == 17

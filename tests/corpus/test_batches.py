"""The order of windows: a bijection, a pure function, the same for any number of processes."""

import numpy as np
import pytest
import torch

from llamactl.corpus.batches import Batches, Windows, permuted_index


@pytest.fixture
def windows() -> Windows:
    """Shards whose token at each place is its own number, so that a window shows where it was cut."""
    lengths, start, shards = [1_000, 3, 517, 64, 65], 0, []
    for length in lengths:
        shards.append(np.arange(start, start + length, dtype=np.uint16))
        start += length
    return Windows(tuple(shards), context=16)


def test_windows_are_cut_within_shards(windows: Windows) -> None:
    assert len(windows) == 62 + 0 + 32 + 3 + 4
    inputs, targets, share, *_ = windows.batch(np.arange(len(windows)))
    assert inputs.dtype == torch.int64
    assert share == 1
    assert (targets == inputs + 1).all()
    starts = inputs[:, 0].tolist()
    assert starts == [*range(0, 992, 16), *range(1003, 1515, 16), *range(1520, 1568, 16), *range(1584, 1648, 16)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1_023, 1_024, 1_025, 100_000])
def test_the_shuffle_is_a_bijection(size: int) -> None:
    assert sorted(permuted_index(np.arange(size), size, "key")) == list(range(size))


def test_the_shuffle_depends_on_its_key_and_shuffles() -> None:
    first, second = (permuted_index(np.arange(1000), 1000, key) for key in ("a", "b"))
    assert (first != second).mean() > 0.9
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15
    assert (np.abs(np.diff(first)) == 1).mean() < 0.02


def test_huge_datasets_cost_nothing() -> None:
    size = 15_000_000_000
    places = np.arange(size - 512, size)
    found = permuted_index(places, size, "key")
    assert len(set(found.tolist())) == 512
    assert found.min() >= 0
    assert found.max() < size


@pytest.mark.parametrize("per_step", [1, 7, 101, 150])
def test_each_window_is_seen_once_an_epoch(windows: Windows, per_step: int) -> None:
    batches = Batches(windows, per_step, key="digest 0")
    seen = np.concatenate([batches.window_ids(step) for step in range(-(-3 * len(windows) // per_step))])
    epochs = seen[: 3 * len(windows)].reshape(3, len(windows))
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(windows)))
    assert (epochs[0] != epochs[1]).any()


def test_a_step_is_the_same_for_any_processes_and_micro_batches(windows: Windows) -> None:
    whole = Batches(windows, 12, key="k").micro_batches(5, most=12)[0].inputs
    parts = torch.cat([batch.inputs for batch in Batches(windows, 12, key="k").micro_batches(5, most=5)])
    assert (whole == parts).all()
    ranks = torch.cat([Batches(windows, 12, key="k", rank=r, size=3).micro_batches(5, most=4)[0].inputs for r in range(3)])
    assert sorted(ranks[:, 0].tolist()) == sorted(whole[:, 0].tolist())


@pytest.mark.parametrize(("per_step", "size", "most"), [(12, 5, 2), (3, 4, 1), (1, 4, 8), (13, 3, 2)])
def test_processes_have_as_many_micro_batches_and_all_shares_make_one_step(
    windows: Windows, per_step: int, size: int, most: int
) -> None:
    ranks = [Batches(windows, per_step, "k", rank, size).micro_batches(5, most) for rank in range(size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sum(batch.share for batches in ranks for batch in batches) == pytest.approx(1)
    counted = torch.cat([batch.inputs for batches in ranks for batch in batches if batch.share])
    whole = Batches(windows, per_step, "k").micro_batches(5, per_step)[0].inputs
    assert sorted(counted[:, 0].tolist()) == sorted(whole[:, 0].tolist())


def test_a_step_needs_no_history(windows: Windows) -> None:
    late = Batches(windows, 8, key="k")
    for step in range(3):
        late.micro_batches(step, 8)
    assert (late.window_ids(10_000_000) == Batches(windows, 8, key="k").window_ids(10_000_000)).all()


def test_from_the_second_epoch_on_windows_begin_elsewhere_and_stay_in_their_shard(windows: Windows) -> None:
    total, epochs = len(windows), 6
    batches = Batches(windows, total, key="k")
    starts = []
    for epoch in range(epochs):
        (batch,) = batches.micro_batches(epoch, total)
        assert (batch.targets == batch.inputs + 1).all(), "a window crosses no shard, as tokens are numbered"
        (offset,) = set(batches.window_offsets(epoch).tolist())
        order, usual = batches.window_ids(epoch), windows.batch(batches.window_ids(epoch)).inputs[:, 0]
        moved = batch.inputs[:, 0] - usual
        lasts = np.isin(order, [61, 93, 96, 100])
        assert (moved.numpy()[~lasts] == offset).all()
        assert (moved.numpy()[lasts] <= offset).all()
        starts.append(offset)
    assert starts[0] == 0
    assert len(set(starts)) >= 4


def test_an_offset_depends_on_the_epoch_alone(windows: Windows) -> None:
    total = len(windows)
    across = Batches(windows, total + 10, key="k")
    assert len(set(across.window_offsets(1).tolist())) == 2
    assert across.window_offsets(1)[-1] == Batches(windows, 1, key="k").window_offsets(2 * total)[0]
    assert len({int(Batches(windows, 1, key=key).window_offsets(2 * total)[0]) for key in "abcdefgh"}) > 3


def test_nothing_is_not_permuted_for_ever() -> None:
    with pytest.raises(ValueError, match="permuted"):
        permuted_index(np.arange(3), 0, "key")

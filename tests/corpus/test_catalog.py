"""What there is under data/: facts, statistics of documents, removal."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamactl.corpus import catalog
from llamactl.corpus.catalog import measure_documents, read_documents, remove_dataset, summarize_datasets
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.documents import SPLITS
from llamactl.errors import InUse, UsageError
from llamactl.storage.locks import hold_lock
from tests.conftest import make_dataset


def test_all_folders_are_listed_whatever_their_state(home: Path, corpus: Path) -> None:
    assert summarize_datasets() == []
    made = make_dataset(home / "data" / "whole", corpus)
    damaged = make_dataset(home / "data" / "damaged", corpus)
    damaged.info_path.write_text("{}")
    (home / "data" / "begun" / "train").mkdir(parents=True)
    (home / "data" / ".whole.removed").mkdir()
    (home / "data" / "a file").write_text("")
    found = {summary.name: summary for summary in summarize_datasets()}
    assert {name: summary.state for name, summary in found.items()} == {
        "whole": "complete",
        "damaged": "damaged",
        "begun": "unfinished",
    }
    info = made.info()
    assert found["whole"].tokens == info.total("train", "tokens")
    assert found["whole"].bytes == sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
    with hold_lock(DatasetDir(home / "data" / "begun").lock_path):
        assert {summary.state for summary in summarize_datasets()} == {"complete", "damaged", "being prepared"}


def test_documents_by_hand(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    end = dataset.tokenizer.end
    train = [np.array([1, 2, end, 3, end, 1, 2, end], np.uint16), np.array([4, 5, 6, 7, end], np.uint16)]
    val = [np.array([3, end, 9, end, 9, end], np.uint16)]
    by_hand = replace(dataset, train=train, val=val)
    for read in (1, 2, 3, 1 << 20):  # a document may span what is read at a time
        monkeypatch.setattr(catalog, "READ", read)
        found = measure_documents(by_hand)
        assert (found.documents, found.tokens) == (7, 12)
        assert (found.repeated, found.leaked) == (2, 1)
        assert (found.lengths[5], found.lengths[50], found.lengths[100]) == (1, 1, 4)
        assert found.unused_ids == dataset.info.vocab_size - 8
    assert [ids.tolist() for ids in read_documents(train, end, 5)] == [[1, 2], [3]]


def test_documents_that_begin_with_a_token_are_measured_without_it(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    end, start = dataset.tokenizer.end, (0,)
    monkeypatch.setattr(dataset.tokenizer, "start", start)
    train = [np.array([1, 2, end, 0, 1, 2, end, 0, 0, 3, end, 0], np.uint16), np.array([1, 2, end, 0], np.uint16)]
    by_hand = replace(dataset, train=train, val=[np.array([1, 2, end, 0, 4, end, 0], np.uint16)])
    found = measure_documents(by_hand)
    assert (found.documents, found.tokens, found.repeated, found.leaked) == (6, 11, 2, 1)


def test_it_is_said_whether_all_was_measured(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in ((), (0,)):
        monkeypatch.setattr(dataset.tokenizer, "start", start)
        longest = max(dataset.info.total(split, "tokens") for split in SPLITS)
        assert measure_documents(dataset, longest).complete
        assert not measure_documents(dataset, longest - 1).complete


def test_the_first_of_the_list_is_what_commands_take(home: Path, corpus: Path) -> None:
    made = [make_dataset(home / "data" / name, corpus, tokenizer="bytes") for name in ("a", "b", "c")]
    later = made[2].info_path.stat().st_mtime_ns + 1
    os.utime(made[1].info_path, ns=(later, later))
    # A folder changes when a file is put into it, or its lock is.
    (made[0].path / "notes").touch()
    for folder, time in zip(made, (3, 1, 2), strict=True):
        os.utime(folder.path, (time, time))
    assert [summary.name for summary in summarize_datasets()] == ["b", "c", "a"]
    assert DatasetDir.from_name("") == made[1]


def test_a_dataset_s_documents_are_those_that_were_prepared(dataset: Dataset, documents: list[str]) -> None:
    split = [
        *read_documents(dataset.train, dataset.tokenizer.end, 10**9),
        *read_documents(dataset.val, dataset.tokenizer.end, 10**9),
    ]
    assert Counter(dataset.tokenizer.decode(ids.tolist()) for ids in split) == Counter(documents)
    found = measure_documents(dataset)
    assert (found.documents, found.repeated, found.leaked) == (len(documents), 0, 0)


def test_removal_is_confirmed_and_never_beside_a_preparation(home: Path, corpus: Path) -> None:
    folder = make_dataset(home / "data" / "old", corpus)
    with pytest.raises(UsageError, match="still there") as refused:
        remove_dataset(folder, False, ["a", "b"])
    assert "2 runs" in refused.value.why
    assert "data remove old --yes" in refused.value.fix
    with hold_lock(folder.lock_path), pytest.raises(InUse):
        remove_dataset(folder, True, [])
    assert folder.open().name == "old"
    assert remove_dataset(folder, True, []).tokens > 0
    assert not list((home / "data").iterdir())

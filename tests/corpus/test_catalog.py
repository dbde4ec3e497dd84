"""What there is under data/: facts, statistics of documents, removal."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamactl.corpus import catalog
from llamactl.corpus.catalog import measure_documents, read_documents, remove_dataset, summarize_datasets
from llamactl.corpus.dataset import Dataset, DatasetDir
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

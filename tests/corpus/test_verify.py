"""Damage in a dataset: every kind is found, and the file is named."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llamactl import durable
from llamactl.artifacts import DatasetDir
from llamactl.corpus.verify import alongside, verify
from llamactl.errors import BadData
from tests.conftest import make_dataset


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> DatasetDir:
    """A dataset that tests damage and mend."""
    return make_dataset(tmp_path_factory.mktemp("data") / "a", corpus, tokenizer="bpe:300")


def damaged(folder: DatasetDir) -> list[str]:
    return [file for file, damage in verify(folder) if damage]


def test_a_sound_dataset_has_no_damage(prepared: DatasetDir) -> None:
    files = [file for file, _ in verify(prepared)]
    assert files == ["dataset.json", "tokenizer.json", *(shard.file for shard in prepared.info().shards)]
    assert damaged(prepared) == []


@pytest.mark.parametrize("file", ["dataset.json", "tokenizer.json"])
def test_every_byte_of_the_small_files_counts(prepared: DatasetDir, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamactl.corpus.verify._damage", lambda *_: "")  # shards are another test's
    path = prepared.path / file
    whole = path.read_bytes()
    try:
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert damaged(prepared)[:1] == [file], place
    finally:
        path.write_bytes(whole)


def test_a_thousand_flips_in_shards_are_found(prepared: DatasetDir) -> None:
    chosen = random.Random(0)
    for _ in range(1000):
        shard = chosen.choice(prepared.info().shards)
        path = prepared.path / shard.file
        place, bit = chosen.randrange(path.stat().st_size), 1 << chosen.randrange(8)
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ bit]))
            file.flush()
            assert damaged(prepared) == [shard.file]
            file.seek(place)
            file.write(bytes([byte]))
    assert damaged(prepared) == []


def test_missing_short_and_foreign_shards_are_named(prepared: DatasetDir) -> None:
    shard = prepared.info().shards[0].file
    path = prepared.path / shard
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole + b"\0", b"not npy"):
        path.write_bytes(content)
        assert damaged(prepared) == [shard]
    path.unlink()
    assert damaged(prepared) == [shard]
    path.write_bytes(whole)


def test_ids_that_no_tokenizer_gave_are_found(home: Path, corpus: Path) -> None:
    """Whoever rewrites the hashes too is caught by what the tokens say."""
    folder = make_dataset(home / "data" / "b", corpus, tokenizer="bytes")
    info = folder.info()
    path = folder.path / info.shards[0].file
    tokens = np.load(path)
    np.save(path, np.where(np.arange(len(tokens)) == 5, 300, tokens).astype(np.uint16))
    shards = (info.shards[0].model_copy(update={"sha256": durable.sha256(path)}), *info.shards[1:])
    durable.write(folder.info_path, info.model_copy(update={"shards": shards}).sealed().model_dump_json(indent=1) + "\n")
    assert damaged(folder) == [info.shards[0].file]


def test_damage_stops_what_runs_alongside(prepared: DatasetDir) -> None:
    def events() -> Iterator[int]:
        yield from range(10**9)

    assert next(alongside(events(), prepared)) == 0
    path = prepared.path / prepared.info().shards[0].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadData, match=path.name):
        for _ in alongside(events(), prepared):
            pass
    path.write_bytes(whole)

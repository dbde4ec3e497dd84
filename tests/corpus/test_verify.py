"""Damage in a dataset: every kind is found, and the file is named."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llamactl import cli
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.verify import check_dataset, verify_in_background
from llamactl.errors import DataError
from llamactl.storage import atomic
from llamactl.tokenizer.bpe import byte_tokenizer, train_bpe
from tests.conftest import make_dataset


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> DatasetDir:
    """A dataset that tests damage and mend."""
    return make_dataset(tmp_path_factory.mktemp("data") / "a", corpus, tokenizer="bpe:300")


def damaged(folder: DatasetDir) -> list[str]:
    return [file for file, damage in check_dataset(folder) if damage]


def test_a_sound_dataset_has_no_damage(prepared: DatasetDir) -> None:
    files = [file for file, _ in check_dataset(prepared)]
    assert files == ["dataset.json", "tokenizer.json", *(shard.file for shard in prepared.info().shards)]
    assert damaged(prepared) == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["dataset.json", "tokenizer.json"])
def test_every_byte_of_the_small_files_counts(prepared: DatasetDir, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamactl.corpus.verify._damage", lambda *_: "")  # shards are another test's
    path = prepared.path / file
    whole = path.read_bytes()
    try:
        listed = whole.find(b'"inputs": {')  # of the list of inputs, whose entries are alike, a part is enough
        for place in [*range(len(whole))[: listed if listed > 0 else None], *range(max(0, listed), len(whole), 17)]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert damaged(prepared)[:1] == [file], place
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
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
    shards = (info.shards[0].model_copy(update={"sha256": atomic.sha256(path)}), *info.shards[1:])
    atomic.write_file(
        folder.info_path, info.model_copy(update={"shards": shards}).with_digest().model_dump_json(indent=1) + "\n"
    )
    assert damaged(folder) == [info.shards[0].file]


def restated(folder: DatasetDir, **changes: object) -> None:
    """Write dataset.json with other figures and digests that match them, as somebody who knows the format can."""
    atomic.write_file(folder.info_path, folder.info().model_copy(update=changes).with_digest().as_file())


def first_shard_as(folder: DatasetDir, **changes: object) -> None:
    first, *others = folder.info().shards
    restated(folder, shards=(first.model_copy(update=changes), *others))


def zeros(folder: DatasetDir) -> str:
    path = folder.shard("train", 0)
    path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))
    return "train/00000.npy"


def zeros_with_their_hash(folder: DatasetDir) -> str:
    zeros(folder)
    first_shard_as(folder, sha256=atomic.sha256(folder.shard("train", 0)))
    return "train/00000.npy"


def swapped(folder: DatasetDir) -> str:
    train, val = folder.shard("train", 0), folder.shard("val", 0)
    train.rename(folder.path / "aside")
    val.rename(train)
    (folder.path / "aside").rename(val)
    return "train/00000.npy"


def another_tokenizer(folder: DatasetDir) -> str:
    folder.tokenizer_path.write_text(byte_tokenizer().description)
    return "tokenizer.json"


def another_tokenizer_with_its_hash(folder: DatasetDir) -> str:
    another_tokenizer(folder)
    restated(folder, tokenizer=byte_tokenizer().digest)
    return "tokenizer.json"


def another_tokenizer_of_the_same_size(folder: DatasetDir) -> str:
    """Of the same number of ids, so that only the bytes of text tell."""
    other = train_bpe(iter(["xylophones and quartz " * 90, "jigsaw puzzles " * 99, "".join(map(chr, range(300, 999)))]), 300)
    assert other.vocab_size == folder.info().vocab_size
    folder.tokenizer_path.write_text(other.description, "utf-8")
    restated(folder, tokenizer=other.digest)
    return "train/00000.npy"


def an_extra_shard(folder: DatasetDir) -> str:
    shutil.copy(folder.shard("train", 0), folder.shard("train", 7))
    return "train/00007.npy"


def a_draft(folder: DatasetDir) -> str:
    (folder.path / "val" / ".00003.npy.1-a.draft").write_bytes(b"half")
    return "val/.00003.npy.1-a.draft"


def a_shard_left_out(folder: DatasetDir) -> str:
    restated(folder, shards=tuple(shard for shard in folder.info().shards if shard.split == "train"))
    return "dataset.json"


def a_shard_twice(folder: DatasetDir) -> str:
    info = folder.info()
    restated(folder, shards=(*info.shards, info.shards[0]))
    return "dataset.json"


def a_link(folder: DatasetDir) -> str:
    path = folder.shard("train", 0)
    path.rename(folder.path / "aside.npy")
    path.symlink_to(folder.path / "aside.npy")
    return "train/00000.npy"


def a_linked_folder(folder: DatasetDir) -> str:
    (folder.path / "val").rename(folder.path / "aside")
    (folder.path / "val").symlink_to(folder.path / "aside")
    return "val/00000.npy"


def a_linked_tokenizer(folder: DatasetDir) -> str:
    folder.tokenizer_path.rename(folder.path / "aside.json")
    folder.tokenizer_path.symlink_to(folder.path / "aside.json")
    return "tokenizer.json"


def a_pipe(folder: DatasetDir) -> str:
    folder.shard("val", 0).unlink()
    os.mkfifo(folder.shard("val", 0))
    return "val/00000.npy"


def a_folder(folder: DatasetDir) -> str:
    folder.shard("val", 0).unlink()
    folder.shard("val", 0).mkdir()
    return "val/00000.npy"


def more_documents_read(folder: DatasetDir) -> str:
    restated(folder, documents_read=folder.info().documents_read + 1)
    return "dataset.json"


def more_documents_in_a_shard(folder: DatasetDir) -> str:
    info = folder.info()
    first_shard_as(folder, documents=info.shards[0].documents + 1)
    restated(folder, documents_read=info.documents_read + 1)
    return "train/00000.npy"


def more_text(folder: DatasetDir) -> str:
    first_shard_as(folder, text_bytes=folder.info().shards[0].text_bytes + 1)
    return "train/00000.npy"


def other_inputs(folder: DatasetDir) -> str:
    """The list of inputs of another dataset."""
    text = folder.info_path.read_text()
    at = text.index('"sha256"', text.index('"inputs": {'))
    digit = at + len('"sha256": "')
    folder.info_path.write_text(text[:digit] + ("0" if text[digit] != "0" else "1") + text[digit + 1 :])
    return "dataset.json"


DAMAGES = (
    zeros, zeros_with_their_hash, swapped, another_tokenizer, another_tokenizer_with_its_hash,
    another_tokenizer_of_the_same_size,
    an_extra_shard, a_draft, a_shard_left_out, a_shard_twice, a_link, a_linked_folder, a_linked_tokenizer, a_pipe, a_folder,
    more_documents_read, more_documents_in_a_shard, more_text, other_inputs,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_of_a_sealed_dataset_is_found(
    damage: Callable[[DatasetDir], str],
    prepared: DatasetDir,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Issue 16, done when 4: `verify.check_dataset` is the one place that reads a dataset to find fault."""
    folder = DatasetDir(home / "data" / "a")
    shutil.copytree(prepared.path, folder.path)
    file = damage(folder)
    assert file in damaged(folder)
    monkeypatch.setattr("sys.argv", ["llamactl", "verify", "data/a"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert file in "".join(capsys.readouterr().err.split())


def test_damage_stops_what_runs_alongside(prepared: DatasetDir) -> None:
    def events() -> Iterator[int]:
        yield from range(10**9)

    assert next(verify_in_background(events(), prepared)) == 0
    path = prepared.path / prepared.info().shards[0].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=path.name):
        for _ in verify_in_background(events(), prepared):
            pass
    path.write_bytes(whole)

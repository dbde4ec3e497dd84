"""Names and formats on disk, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.errors import DataError
from llamactl.runs.run_dir import RunDir, run_of
from tests.conftest import make_dataset


@pytest.fixture
def prepared(home: Path, corpus: Path) -> DatasetDir:
    return make_dataset(home / "data" / "addresses", corpus, tokenizer="bytes")


def test_a_dataset_is_plain_files(prepared: DatasetDir) -> None:
    info = json.loads(prepared.info_path.read_text())
    shard = info["shards"][0]
    tokens = np.load(prepared.path / shard["file"], mmap_mode="r")
    assert tokens.dtype == np.uint16
    assert len(tokens) == shard["tokens"]
    assert (tokens == 256).sum() == shard["documents"]
    assert len(tokens) == shard["text_bytes"] + shard["documents"]


def test_the_newest_complete_dataset_is_the_default(home: Path, prepared: DatasetDir) -> None:
    (home / "data" / "unfinished").mkdir()
    assert DatasetDir.from_name("") == prepared


def test_missing_things_name_the_command_that_makes_them(home: Path) -> None:
    with pytest.raises(DataError, match="llamactl prepare sample"):
        DatasetDir.from_name("")
    with pytest.raises(DataError, match="llamactl train"):
        RunDir.from_name("")


def test_a_misspelt_name_names_the_nearest(prepared: DatasetDir) -> None:
    with pytest.raises(DataError, match="Did you mean 'addresses'"):
        DatasetDir.from_name("adresses").open()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "/abs", "a\n", "-x"])
def test_names_stay_inside_their_folder(name: str) -> None:
    for named in (DatasetDir.from_name, RunDir.from_name):
        with pytest.raises(DataError, match="not a name"):
            named(name)


@pytest.mark.parametrize(
    "edit",
    [
        lambda info: info.update(vocab_size=5),
        lambda info: info.update(surprise=1),
        lambda info: info["shards"][0].update(file="../../etc/passwd"),
        lambda info: info["shards"][0].update(tokens=-1),
        lambda info: info.pop("recipe"),
    ],
)
def test_an_edited_dataset_json_is_refused(prepared: DatasetDir, edit: object) -> None:
    info = json.loads(prepared.info_path.read_text())
    edit(info)  # type: ignore[operator]
    prepared.info_path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"dataset\.json"):
        prepared.open()


def test_foreign_and_missing_shards_are_refused(prepared: DatasetDir) -> None:
    shard = prepared.path / prepared.info().shards[0].file
    np.save(shard, np.zeros(7, np.uint16))
    with pytest.raises(DataError, match="wrong size"):
        prepared.open()
    shard.unlink()
    with pytest.raises(DataError, match="missing"):
        prepared.open()


def test_a_foreign_tokenizer_is_refused(prepared: DatasetDir) -> None:
    prepared.tokenizer_path.write_text(prepared.tokenizer_path.read_text() + " ")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        prepared.open()


def test_a_run_reads_its_config_and_last_rows_back(home: Path, dataset: Dataset) -> None:
    run = RunDir.from_name("a")
    run.start(Config(), {"python": "3"})
    assert run.config() == Config()
    lines = [{"kind": "step", "step": 1, "loss": 3}, {"kind": "step", "step": 1, "loss": 2}, {"kind": "validation", "step": 1}]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
    assert run.rows() == lines[1:]


def test_only_whole_names_are_checkpoints(home: Path) -> None:
    run = RunDir.from_name("a")
    for name in ("step-00000010", "step-00000002", "old-step-00000099", "step-99", ".step-00000050.draft"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    assert run.steps() == [2, 10]


def test_a_checkpoint_knows_its_run_and_other_folders_have_none(home: Path) -> None:
    run = RunDir.from_name("a")
    assert run_of(run.checkpoint(3)) == run
    for folder in (
        "/",
        "/mnt",
        "/checkpoints/x",
        home,
        run.path,
        run.checkpoints,
        run.checkpoints / "damaged-1",
        home / "x" / "y",
    ):
        assert run_of(Path(folder)) is None


def test_fresh_runs_never_share_a_folder(home: Path) -> None:
    """Also where none has written anything yet, and those that are only named take no name away."""
    assert len({RunDir.claim_new_name("tiny").path for _ in range(5)} | {RunDir.with_new_name("tiny").path}) == 6


def test_a_claimed_folder_is_no_run_and_goes_if_nothing_was_written(home: Path) -> None:
    run = RunDir.claim_new_name("tiny")
    assert RunDir.all() == []
    with pytest.raises(DataError, match="no run"):
        run.check_exists()
    with pytest.raises(DataError), run.removed_if_unused():
        raise DataError("It was refused.")
    assert not run.path.exists()
    kept = RunDir.claim_new_name("tiny")
    kept.start(Config(), {})
    with kept.removed_if_unused():
        pass
    assert RunDir.all() == [kept]

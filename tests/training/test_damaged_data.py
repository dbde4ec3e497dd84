"""Data that changes while a run trains on it: an error that names the shard, never a signal, a success or a bug (number 5).

`mapping.Shards.read` is the one place that reads tokens, `verify.verify_in_background` the one that waits for their hashes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llamactl import cli
from llamactl.corpus import verify
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.memmap import HEADER, Shards
from llamactl.errors import DataError, Diverged
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic
from llamactl.training.trainer import Trainer
from tests.conftest import make_dataset

Command = Callable[..., tuple[int, str]]
SMALL = {
    "model.n_layers": 1, "model.dim": 32, "model.n_heads": 2, "model.n_kv_heads": 2, "model.head_dim": 16, "model.ffn_dim": 32,
    "model.context": 32, "train.tokens_per_step": 256, "train.sample_tokens": 2, "train.device": "cpu",
    "train.compile": "off", "train.eval_every": 1000, "train.save_every": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> DatasetDir:
    return make_dataset(tmp_path_factory.mktemp("data") / "texts", corpus, tokenizer="bpe:300")


@pytest.fixture
def folder(prepared: DatasetDir, home: Path) -> DatasetDir:
    """A dataset of the test's own."""
    shutil.copytree(prepared.path, home / "data" / "texts")
    return DatasetDir.from_name("texts")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; gives its exit code and all that it printed."""

    def command(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["llamactl", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        printed = capsys.readouterr()
        return code, "".join((printed.out + printed.err).split())  # paths are broken over lines

    return command


def train(command: Command, *words: str) -> tuple[int, str]:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    return command("train", "--data", "texts", "--run", "r", "--tokens", "5120", *settings, *words)


def shrunk(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def zeroed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(HEADER)
        file.write(bytes(path.stat().st_size - HEADER))


def zeroed_with_old_times(path: Path) -> None:
    before = path.stat()
    zeroed(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def filled_with_foreign_ids(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(HEADER)
        file.write(b"\xff" * (path.stat().st_size - HEADER))


def replaced(path: Path) -> None:
    twin = path.with_suffix(".new")
    np.save(twin.open("wb"), np.full((path.stat().st_size - HEADER) // 2, 7, np.uint16))
    twin.replace(path)


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    shutil.move(path, path.parents[2] / "elsewhere.npy")
    path.symlink_to(path.parents[2] / "elsewhere.npy")


DAMAGES = {
    damage.__name__: damage
    for damage in (
        shrunk, emptied, zeroed, zeroed_with_old_times, filled_with_foreign_ids, replaced, gone, a_folder, a_pipe, a_link,
    )
}  # fmt: skip


def after_step(number: int, work: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Have something happen while a run trains."""
    advance = Trainer.train_step

    def disturbed(trainer: Trainer) -> object:
        if trainer.state.step == number:
            work()
        return advance(trainer)

    patch.setattr(Trainer, "train_step", disturbed)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("step", [3, 19], ids=["in the midst", "at the last step"])
def test_a_shard_damaged_while_it_is_trained_on_ends_the_run(
    damage: str, step: int, folder: DatasetDir, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step(step, lambda: DAMAGES[damage](folder.shard("train", 0)), monkeypatch)
    code, told = train(command)
    assert code == 3, told
    assert "train/00000.npy" in told
    assert "issafe" not in told


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_damaged_before_the_start_ends_the_run(damage: str, folder: DatasetDir, command: Command) -> None:
    DAMAGES[damage](folder.shard("train", 0))
    code, told = train(command)
    assert code == 3, told
    assert "train/00000.npy" in told


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_held_out_shards_are_protected_too(
    damage: str, folder: DatasetDir, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the validation at a run's end, and in `eval`, before and while it reads."""
    assert train(command)[0] == 0
    whole = folder.shard("val", 0).read_bytes()

    def damaging(windows: Windows, *words: object) -> object:
        monkeypatch.setattr(Windows, "batch", batch)
        DAMAGES[damage](folder.shard("val", 0))
        return batch(windows, *words)  # type: ignore[arg-type]

    batch = Windows.batch
    monkeypatch.setattr(Windows, "batch", damaging)
    for _ in range(2):
        code, told = command("eval", "--run", "r", "--data", "texts")
        assert code == 3, told
        assert "val/00000.npy" in told
    path = folder.shard("val", 0)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(whole)
    after_step(3, lambda: DAMAGES[damage](path), monkeypatch)
    shutil.rmtree(RunDir.from_name("r").path)
    code, told = train(command)
    assert code == 3, told
    assert "val/00000.npy" in told


def test_ids_above_the_vocabulary_are_found_though_all_hashes_match(folder: DatasetDir, command: Command) -> None:
    """As by somebody who wrote the dataset with another program."""
    filled_with_foreign_ids(folder.shard("train", 0))
    info = folder.info()
    shards = [shard.model_copy(update={"sha256": atomic.sha256(folder.path / shard.file)}) for shard in info.shards]
    atomic.write_file(folder.info_path, info.model_copy(update={"shards": tuple(shards)}).with_digest().as_file())
    code, told = train(command)
    assert code == 3, told
    assert "theid65,535" in told


def test_a_run_is_not_done_before_its_data_was_read(
    folder: DatasetDir, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros that the last step never saw, found by the thread after it."""
    zeroed(folder.shard("train", 0))
    read, slow = verify.check_dataset, []

    def late(*words: object) -> Iterator[tuple[str, str]]:
        while not (RunDir.from_name("r").path / "checkpoints" / "step-00000020" / "state.json").exists():
            pass
        slow.append(1)
        yield from read(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "check_dataset", late)
    code, told = train(command)
    assert slow
    assert code == 3
    assert "nottobetrusted" in told
    assert "issafe" not in told


def test_another_dataset_in_the_place_of_the_first_is_noticed(folder: DatasetDir, corpus: Path) -> None:
    def swapped() -> Iterator[int]:
        yield 1
        shutil.rmtree(folder.path)
        make_dataset(folder.path, corpus, tokenizer="bytes")

    looked_at_in_between = r"no finished dataset|missing or damaged"
    with pytest.raises(DataError, match=rf"not to be trusted|{looked_at_in_between}"):
        list(verify.verify_in_background(swapped(), folder))


def test_damage_explains_a_divergence(folder: DatasetDir) -> None:
    def diverging() -> Iterator[int]:
        yield 1
        raise Diverged("It did.")

    zeroed(folder.shard("train", 0))
    with pytest.raises(DataError, match=r"train/00000\.npy"):
        list(verify.verify_in_background(diverging(), folder))


def test_a_touched_shard_with_the_same_bytes_is_sound_for_the_check_at_the_end(folder: DatasetDir) -> None:
    def touching() -> Iterator[int]:
        yield 1
        folder.shard("train", 0).chmod(0o600)

    assert list(verify.verify_in_background(touching(), folder)) == [1]


def test_who_asked_to_stop_need_not_wait(folder: DatasetDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> Iterator[tuple[str, str]]:
        while True:
            yield "", ""

    monkeypatch.setattr(verify, "check_dataset", endless)
    assert list(verify.verify_in_background(iter([1, 2]), folder, patient=lambda: False)) == [1, 2]


def test_open_files_are_let_go(folder: DatasetDir) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("counts open files in /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        shards = folder.open().train
        assert isinstance(shards, Shards)
        shards.read(0, 0, 10)
    del shards
    assert len(list(descriptors.iterdir())) <= before + 2

"""Readers beside a trainer that removes old checkpoints, and on disks that can't be written.

One place: `checkpoint.use` calls its work again with what the name means by then; `checkpoint.newest` passes over what is gone.
"""

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.errors import DataError
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic, locks
from llamactl.storage import records as storage_records
from tests.checkpoint.test_io import SMALL as SHAPE
from tests.checkpoint.test_io import save
from tests.cli.test_resuming import SMALL, data, prepared, typed

assert data
assert prepared


@pytest.fixture
def run(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunDir:
    """A run with the checkpoints 4 and 6."""
    assert typed(f"train --run a --tokens 384 {SMALL}", monkeypatch, capsys)[0] == 0
    return RunDir.from_name("a")


def saved(run: RunDir, old: int, new: int) -> None:
    """What a trainer does: a newer checkpoint appears, an old one goes."""
    with atomic.atomic_dir(run.checkpoint(new)) as draft:
        for file in run.checkpoint(old).iterdir():
            if file.name != checkpoint_format.STATE:
                draft.write(file.name, [file.read_bytes()])
        state = checkpoint_format.read_verified_state(run.checkpoint(old)).model_copy(
            update={"step": new, "validation_loss": 5 / new}
        )
        draft.write(checkpoint_format.STATE, [state.with_digest().to_text().encode()])
    atomic.remove_folder(run.checkpoint(old))


COMMANDS = (
    "sample A --max-new-tokens 1",
    "sample A --max-new-tokens 1 --run a@best",
    "eval --run a",
    "surprise 'The union' --run a",
    "export gguf a --out OUT",
    "export hf a --out OUT",
    "export web a --out OUT --checkpoints 2",
    "bench decode --run a --batches 1 --prompt 1 --new 8",
    "train --init-from a --run b --tokens 64 --device cpu --set train.tokens_per_step=64 --set train.sample_tokens=1",
    "verify a",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_that_goes_while_it_is_read(
    command: str, run: RunDir, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the moment when the first file of it is hashed, it makes way for a newer one."""
    if "gguf" in command:
        pytest.importorskip("gguf")
    hash_of, pending = storage_records.hash_file, [True]

    def hashed(path: Path, root: Path | None = None, limit: int | None = None) -> str:
        if pending and path.parent == run.checkpoint(6):
            pending.clear()
            saved(run, 6, 8)
        return hash_of(path, root, limit)

    monkeypatch.setattr(checkpoint_format, "hash_file", hashed)
    code, said = typed(command.replace("OUT", str(home / "out")), monkeypatch, capsys)
    assert code == 0, said
    assert not pending
    assert "damaged" not in said


@pytest.mark.slow
def test_many_reads_beside_many_saves(home: Path) -> None:
    """Hundreds of checkpoints come and go, one at a time; each read finds one, whole."""
    run, over = RunDir.from_name("a"), threading.Event()
    save(run.checkpoint(1), SHAPE, 1, loss=5.0)
    run.config_path.touch()

    def train() -> None:
        step = 1
        while not over.is_set():
            saved(run, step, step + 1)
            step += 1

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for name in ("a", "a@best", "") * 20:
            path, _, _, state = checkpoint_io.open_model(name, torch.device("cpu"))
            assert path == run.checkpoint(state.step)
    finally:
        over.set()
        trainer.join()


def test_a_checkpoint_that_is_damaged_is_still_said_to_be(run: RunDir) -> None:
    (run.checkpoint(6) / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        checkpoint_io.open_model("a@6", torch.device("cpu"))


@pytest.mark.parametrize("command", ["sample A", "sample A --run b", "eval --run b", "export hf b", "surprise x --run b"])
def test_a_run_without_a_checkpoint_yet_is_said_to_be_running(
    command: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = RunDir.from_name("b")
    new.start(run.config(), {})
    with locks.hold_lock(new.lock_path):
        code, said = typed(command, monkeypatch, capsys)
    assert code == 3
    assert "It is training" in said
    assert "name another run: a" in said.replace("\n", " ")
    code, said = typed(command, monkeypatch, capsys)
    assert (code, "stopped before its first one" in said, "--resume b" in said) == (3, True, True)


@pytest.mark.parametrize("command", ["runs list", "runs list --json", "runs show a", "watch a", "report a", "eval"])
def test_a_run_that_is_removed_while_it_is_looked_at(
    command: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list leaves it out, who asked for it alone is told."""
    read = RunDir.config

    def config(self: RunDir) -> object:
        if run.path.exists():
            atomic.remove_folder(run.path)
        return read(self)

    monkeypatch.setattr(RunDir, "config", config)
    code, said = typed(command, monkeypatch, capsys)
    assert code == (0 if "list" in command else 3) or command == "eval", said
    assert "bug" not in said


@pytest.mark.parametrize("name", ["plan.json", "environment.json", "samples.jsonl", "metrics.jsonl"])
def test_what_is_missing_beside_a_config_breaks_no_list(
    name: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / name).unlink()
    for command in ("runs list", "watch a", "sample A --max-new-tokens 1", "eval --run a", "train --resume a"):
        code, said = typed(command, monkeypatch, capsys)
        assert code == 0, said


# Disks that can't be written


@pytest.fixture
def read_only(home: Path, run: RunDir, mount: Callable[[Path, str], Path]) -> Path:
    """The same home on a disk that takes nothing more."""
    disk = mount(home / "disk", "50m")
    for name in ("data", "runs"):
        shutil.copytree(home / name, disk / name)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk


def test_readers_write_nothing(
    read_only: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMACTL_HOME", str(read_only))
    out = home / "out"
    commands = (
        "sample A --max-new-tokens 1", "eval", "surprise 'The union'", "runs list", "runs show", "verify a",
        "verify data/addresses", "watch a", f"report --out {out}.html", f"plot-loss --out {out}.png", f"export hf --out {out}",
    )  # fmt: skip
    for command in commands:
        code, said = typed(command, monkeypatch, capsys)
        assert code == 0, (command, said)
    for command in ("plot-loss", "report"):
        code, said = typed(command, monkeypatch, capsys)
        assert code == 4
        assert "--out" in said
    code, said = typed("train --resume a --tokens 640", monkeypatch, capsys)
    assert code == 4
    assert "Read-only" in said


def test_a_complete_dataset_that_can_not_be_touched_is_complete(
    read_only: Path, home: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of somebody else, or on a read-only disk: prepare says so, and training reads it."""
    monkeypatch.setenv("LLAMACTL_HOME", str(read_only))
    command = f"prepare --name addresses --tokenizer bytes --val-fraction 0.1 '{corpus}'"
    code, said = typed(command, monkeypatch, capsys)
    assert code in (0, 3), said
    assert "Read-only" not in said
    shutil.rmtree(home / "data")
    shutil.rmtree(home / "runs")
    (home / "data").symlink_to(read_only / "data")
    monkeypatch.setenv("LLAMACTL_HOME", str(home))
    code, said = typed(f"train --run new --tokens 128 {SMALL}", monkeypatch, capsys)
    assert code == 0, said

"""What may differ when a run is resumed, by whatever way it came: `training/resumption.py` is the one place.

In process: each case is a few steps of a tiny model.
"""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from llamactl import cli
from llamactl.checkpoint import format as checkpoint_format
from llamactl.hardware import throughput
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Resumed
from tests.cli.inline import type_in
from tests.conftest import make_dataset

SMALL = (
    "--preset tiny --device cpu --precision fp32 --set model.n_layers=1 --set model.dim=32 --set model.n_heads=2 "
    "--set model.n_kv_heads=1 --set model.head_dim=16 --set model.ffn_dim=64 --set model.context=32 "
    "--set train.tokens_per_step=64 --set train.compile=off --set train.eval_every=100 --set train.save_every=2 "
    "--set 'train.prompts=[\"a\"]' --set train.sample_tokens=1"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "addresses", corpus, "bytes").path


@pytest.fixture(autouse=True)
def data(home: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 1e11)
    return Path(shutil.copytree(prepared, home / "data" / "addresses"))


def typed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Type a command; its exit code and what it said."""
    monkeypatch.setattr(sys, "argv", ["llamactl", *shlex.split(command)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture
def stopped(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunDir:
    """A run of six steps whose last checkpoint is gone, so that there is something to do."""
    assert typed(f"train --run a --tokens 384 {SMALL}", monkeypatch, capsys)[0] == 0
    run = RunDir.from_name("a")
    shutil.rmtree(run.checkpoint(6))
    return run


def edit(run: RunDir, key: str, value: str) -> None:
    """Change a line of config.toml."""
    lines = run.config_path.read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith(f"{key} ="))
    lines[number] = f"{key} = {value}"
    run.config_path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("lr", "0.5", "optim.lr"),
        ("weight_decay", "0.9", "optim.weight_decay"),
        ("max_grad_norm", "5.0", "optim.max_grad_norm"),
        ("seed", "7", "data.seed"),
        ("warmup", "0.9", "schedule.warmup"),
        ("ffn_dim", "128", "model.ffn_dim"),
        ("eval_tokens", "9", "train.eval_tokens"),
        ("tokens", "128", "train.tokens"),
        ("preset", '"7b"', "preset"),
    ],
)
def test_an_edited_config_is_refused_as_the_same_is_when_typed(
    key: str, value: str, name: str, stopped: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(stopped, key, value)
    before = stopped.config_path.read_bytes()
    code, said = typed("train --resume a", monkeypatch, capsys)
    assert code == 2, said
    assert f"{name}: " in said
    assert f"-> {value.strip(chr(34))}" in said
    assert "config.toml was edited" in said
    assert stopped.config_path.read_bytes() == before
    assert stopped.steps()[-1] == 4


def test_what_may_change_is_taken_and_said(
    stopped: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(stopped, "keep_last", "7")
    edit(stopped, "tokens", "512")
    code, said = typed("train --resume a --set train.save_minutes=0", monkeypatch, capsys)
    assert code == 0, said
    for change in ("train.keep_last: 2 -> 7", "train.tokens: 384 -> 512", "train.save_minutes: 10.0 -> 0.0"):
        assert change in said.replace("\n", " ")
    assert stopped.steps()[-1] == 8
    changed = [row["changed"] for row in stopped.rows() if row["kind"] == Resumed.kind]
    assert len(changed[-1]) == 3


def test_a_resumed_run_keeps_its_plan_and_tells_the_time_that_is_left(
    stopped: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = stopped.plan_path.read_bytes()
    assert "for the 2 steps that are left" in typed("train --resume a", monkeypatch, capsys)[1]
    assert "none: the run is finished" in typed("train --resume a", monkeypatch, capsys)[1]
    assert stopped.plan_path.read_bytes() == planned
    assert "for the 2 steps that are left" in typed("train --resume a --tokens 512", monkeypatch, capsys)[1]
    assert stopped.plan()["tokens"] == 512
    stopped.plan_path.write_text("{")
    assert typed("train --resume a", monkeypatch, capsys)[0] == 0
    assert stopped.plan()["tokens"] == 512


def test_a_refused_plan_leaves_no_folder(
    data: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"train --tokens 100M {SMALL}", monkeypatch, capsys)[0] == 2
    assert not list((home / "runs").iterdir())


def test_what_is_typed_wins_over_an_edited_file(
    stopped: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An edit is taken back by typing what was there."""
    was = checkpoint_format.read_verified_state(stopped.checkpoint(4)).config["optim"]["lr"]
    edit(stopped, "lr", "0.5")
    assert typed(f"train --resume a --set optim.lr={was}", monkeypatch, capsys)[0] == 0
    assert stopped.config().optim.lr == was


def test_a_checkpoint_from_before_opens_with_its_digest(
    stopped: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the settings in it, as an earlier version wrote it: the same bytes, the same digest, resumed."""
    path = stopped.checkpoint(4) / checkpoint_format.STATE
    state = checkpoint_format.read_verified_state(stopped.checkpoint(4)).model_copy(update={"config": {}}).with_digest()
    assert '"config"' not in state.to_text()
    path.write_text(state.to_text())
    assert typed("train --resume a", monkeypatch, capsys)[0] == 0
    assert stopped.steps()[-1] == 6


@pytest.mark.parametrize("command", ["train --resume a", "train --resume a --data renamed"])
def test_a_renamed_dataset_is_the_same_dataset(
    command: str, stopped: RunDir, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data.rename(data.with_name("renamed"))
    code, said = typed(command, monkeypatch, capsys)
    assert code == 0, said
    assert "data.name: addresses -> renamed" in said.replace("\n", " ")
    assert stopped.config().data.name == "renamed"


def test_another_dataset_is_not(
    stopped: RunDir, data: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither under another name nor under the old one; where the right one is, it is named."""
    make_dataset(data.with_name("other"), corpus, "bytes", val_fraction=0.3)
    code, said = typed("train --resume a --data other", monkeypatch, capsys)
    assert (code, "--data addresses" in said) == (3, True)
    data.rename(data.with_name("renamed"))
    data.with_name("other").rename(data)
    code, said = typed("train --resume a", monkeypatch, capsys)
    assert (code, "--data renamed" in said) == (3, True)
    shutil.rmtree(data)
    shutil.rmtree(data.with_name("renamed"))
    code, said = typed("train --resume a", monkeypatch, capsys)
    assert (code, "no finished dataset" in said) == (3, True)


def test_a_run_is_not_resumed_under_another_name(home: Path) -> None:
    shown = type_in("train", "--resume", "a", "--run", "b")
    assert shown.code == 2
    assert "a can't be resumed as b" in shown.err
    assert "--init-from a --run b" in shown.err

"""A run from outside: signalled, moved, removed, unmounted, its terminal gone. What it learned stays, and nothing is elsewhere.

One place each: `training/wishes.py` hears signals, `training/folder_guard.py` compares a path with its folder,
`cli/screen.py` (`Unbreakable`) writes to terminals that may be gone.
"""

import os
import pty
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llamactl.checkpoint import select as checkpoint_select
from llamactl.hardware import throughput
from llamactl.runs.run_dir import RunDir
from llamactl.training import trainer
from tests.conftest import make_dataset
from tests.processes import status, typed

pytestmark = pytest.mark.slow
SMALL = (
    "--preset tiny --device cpu --precision fp32 --set model.n_layers=1 --set model.dim=32 --set model.n_heads=2 "
    "--set model.n_kv_heads=1 --set model.head_dim=16 --set model.ffn_dim=64 --set model.context=32 "
    "--set train.tokens_per_step=64 --set train.compile=off --set train.eval_every=1000000 --set train.save_every=20"
)
LONG = f"train --run a --tokens 50M --yes {SMALL}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "addresses", corpus, "bytes").path


@pytest.fixture(autouse=True)
def data(home: Path, prepared: Path) -> Path:
    return Path(shutil.copytree(prepared, home / "data" / "addresses"))


@pytest.fixture(autouse=True)
def known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes longer than these runs; forked processes inherit what is put in its place, and imports."""
    assert trainer
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 1e11)


@contextmanager
def running(command: str, home: Path, before: Callable[[], object] = lambda: None) -> Iterator[tuple[int, Path]]:
    """A command that is in the midst of training when the block begins; its number, and the file of what it says."""
    log = home / "log.txt"

    def ready() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        before()

    pid = typed(command, log, ready)
    try:
        deadline = time.monotonic() + 60
        while not RunDir.from_name("a").steps():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield pid, log
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ChildProcessError, ProcessLookupError):
            pass


def said(command: str, home: Path, code: int = 0) -> str:
    """What a command prints that ends with a code."""
    log = home / "other.txt"
    log.unlink(missing_ok=True)
    assert status(typed(command, log)) == code, log.read_text()
    return log.read_text()


# Signals: `wishes.listening`


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGXCPU, signal.SIGPWR])
def test_a_signal_that_would_end_the_process_saves_first(number: signal.Signals, home: Path) -> None:
    with running(LONG, home) as (pid, log):
        os.kill(pid, number)
        assert status(pid) == 128 + number
    step = RunDir.from_name("a").steps()[-1]
    assert f"the checkpoint of step {step:,} is safe" in log.read_text()
    assert max(row["step"] for row in RunDir.from_name("a").rows() if row["kind"] == "step") == step


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGHUP, signal.SIGHUP),  # the kernel's and the shell's
        (signal.SIGTERM, signal.SIGHUP),  # systemd ends a session
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGXCPU, signal.SIGXCPU, signal.SIGXCPU),  # each second from the soft limit on
    ],
)
def test_signals_that_come_together_do_not_cost_the_checkpoint(numbers: tuple[signal.Signals, ...], home: Path) -> None:
    with running(LONG, home) as (pid, log):
        for number in numbers:
            os.kill(pid, number)
            time.sleep(0.002)
        # Of signals that arrive before Python looks, it takes the lowest number first.
        assert status(pid) - 128 in numbers, log.read_text()
    assert "is safe" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_signals_of_batch_systems_save_and_train_on(number: signal.Signals, home: Path) -> None:
    with running(LONG, home) as (pid, _):
        deadline = time.monotonic() + 30
        # Again where it came in the very step that saves anyway. The rows stay; the checkpoints may be pruned.
        while not any(row["step"] % 20 for row in RunDir.from_name("a").rows() if row["kind"] == "saved"):
            assert time.monotonic() < deadline
            os.kill(pid, number)
            time.sleep(0.05)
        os.kill(pid, signal.SIGTERM)
        assert status(pid) == 143


def test_nohup_keeps_its_meaning(home: Path) -> None:
    with running(LONG, home, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (pid, _):
        os.kill(pid, signal.SIGHUP)
        before = RunDir.from_name("a").steps()[-1]
        while RunDir.from_name("a").steps()[-1] <= before + 40:
            time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)
        assert status(pid) == 143


def drain(terminal: int) -> None:
    """Read what is shown until the terminal is closed: one that nobody reads stops who writes to it."""
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


@pytest.mark.parametrize("ignored", [False, True], ids=["closed", "closed, with nohup"])
def test_a_terminal_that_closes(ignored: bool, home: Path) -> None:
    """The other end of a terminal goes: a run that is not told by a signal goes on to the end, without a word."""
    above, below = pty.openpty()

    def in_terminal() -> None:
        os.setsid()
        os.dup2(below, 2)
        os.dup2(below, 1)
        os.close(above)
        os.close(below)
        os.environ["TERM"] = "xterm-256color"
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    pid = typed(LONG.replace("50M", "100k"), home / "log.txt", in_terminal)
    os.close(below)
    shown = threading.Thread(target=drain, args=(above,))
    shown.start()
    deadline = time.monotonic() + 60
    while not RunDir.from_name("a").steps():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(above)
    if not ignored:
        os.kill(pid, signal.SIGHUP)
    code = status(pid)
    run = RunDir.from_name("a")
    assert code in ((0,) if ignored else (129,))
    assert checkpoint_select.find_newest(run)[0] == run.checkpoint(
        max(row["step"] for row in run.rows() if row["kind"] == "step")
    )


# Folders: `folder_guard`


def moved(home: Path) -> None:
    (home / "runs" / "a").rename(home / "runs" / "b")


def moved_elsewhere(home: Path) -> None:
    (home / "elsewhere").mkdir()
    (home / "runs" / "a").rename(home / "elsewhere" / "a")


def all_runs_moved(home: Path) -> None:
    (home / "runs").rename(home / "old-runs")


def replaced_by_a_copy(home: Path) -> None:
    moved(home)
    shutil.copytree(home / "runs" / "b", home / "runs" / "a")


def replaced_by_an_empty_folder(home: Path) -> None:
    moved(home)
    (home / "runs" / "a").mkdir()


def replaced_by_a_link(home: Path) -> None:
    moved(home)
    (home / "other").mkdir()
    (home / "runs" / "a").symlink_to(home / "other")


def removed(home: Path) -> None:
    subprocess.run(["mv", str(home / "runs" / "a"), str(home / "gone")], check=True)
    shutil.rmtree(home / "gone", ignore_errors=True)


RELOCATIONS = (
    moved, moved_elsewhere, all_runs_moved, replaced_by_a_copy, replaced_by_an_empty_folder, replaced_by_a_link, removed,
)  # fmt: skip


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


@pytest.mark.parametrize("relocate", RELOCATIONS)
def test_a_run_whose_folder_goes_ends_and_says_where_it_is(relocate: Callable[[Path], None], home: Path) -> None:
    """Nothing is written where it was; where it is now, it can be resumed."""
    with running(LONG, home) as (pid, log):
        os.kill(pid, signal.SIGSTOP)  # removing takes more than one step, and the run must not look in between
        relocate(home)
        os.kill(pid, signal.SIGCONT)
        there = contents(home / "runs" / "a")
        assert status(pid) == 4, log.read_text()
    assert contents(home / "runs" / "a") == there
    lines = [line for line in log.read_text().splitlines() if line.startswith(("✗", "  "))][-3:]
    assert str(home / "runs" / "a") in lines[0]
    assert "is done" not in log.read_text()
    if relocate is moved:
        assert lines[2].strip() == "llamactl train --resume b"
    elif relocate is removed:
        assert "was removed" in lines[0]
    else:
        assert str(next(path for path in home.rglob("metrics.jsonl") if path.parent != home / "runs" / "a").parent) in lines[1]


def test_a_run_that_was_moved_resumes_where_it_is_now(home: Path) -> None:
    with running(LONG.replace("50M", "20k"), home) as (pid, _):
        moved(home)
        assert status(pid) == 4
    run = RunDir.from_name("b")
    assert said("train --resume b", home)
    assert run.steps()[-1] == 313
    assert not (home / "runs" / "a").exists()


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_dataset_whose_folder_goes_ends_the_run_with_a_checkpoint(how: str, home: Path, data: Path) -> None:
    with running(LONG, home) as (pid, log):
        data.rename(home / "other")
        if how == "removed":
            shutil.rmtree(home / "other")
        if how == "replaced":
            shutil.copytree(home / "other", data)
        assert status(pid) == 4, log.read_text()
    run = RunDir.from_name("a")
    assert str(data) in log.read_text()
    assert run.steps()[-1] == max(row["step"] for row in run.rows() if row["kind"] == "step")


def test_checkpoints_that_are_removed_by_hand_do_not_end_the_run(home: Path) -> None:
    """Between two saves; one that is being written then fails, with exit code 4."""
    with running(LONG.replace("save_every=20", "save_every=150"), home) as (pid, log):
        run, deadline = RunDir.from_name("a"), time.monotonic() + 60
        run.checkpoints.rename(home / "saved")
        while not run.steps():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)
        assert status(pid) == 143
    assert run.config_path.exists()


def test_a_log_that_an_editor_replaced_is_written_on(home: Path) -> None:
    with running(LONG, home) as (pid, _):
        log = RunDir.from_name("a").metrics_path
        text = log.read_bytes()
        log.unlink()
        log.write_bytes(text[: text.rfind(b"\n") + 1])
        os.kill(pid, signal.SIGTERM)
        assert status(pid) == 143
    assert [row["kind"] for row in RunDir.from_name("a").rows()].count("stopped") == 1


@pytest.mark.parametrize("how", ["read-only", "unmounted"])
def test_a_disk_that_goes(how: str, home: Path, mount: Callable[[Path, str], Path]) -> None:
    disk = mount(home / "runs", "50m")
    with running(LONG, home) as (pid, log):
        command = ["umount", "-l", str(disk)] if how == "unmounted" else ["mount", "-o", "remount,ro", str(disk)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:  # a disk with open files can't be made read-only by hand; one that fails is
            os.kill(pid, signal.SIGTERM)
            assert status(pid) == 143
            pytest.skip("the kernel refuses")
        code = status(pid)
    if how == "unmounted":
        assert list((home / "runs").iterdir()) == []
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)  # for the fixture to take away
    assert code == 4, log.read_text()
    assert str(home / "runs" / "a") in log.read_text()

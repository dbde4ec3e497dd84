"""Other processes that keep the cores busy are noticed, and threads then sleep while they wait."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamactl.hardware import busy
from llamactl.runs.run_dir import RunDir
from tests.conftest import make_dataset


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how many threads can run; here as on an idle machine of four cores, two of them ours."""
    path = tmp_path / "loadavg"
    path.write_text("3.10 2.00 1.00 1/345 12345\n")
    monkeypatch.setattr(busy, "LOADAVG", path)
    monkeypatch.setattr(busy, "usable_cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return path


def test_this_process_does_not_count(load: Path) -> None:
    assert busy.count_busy_threads() == busy.crowding_threads() == 0  # the mean of the last minute does not matter


def test_others_crowd_only_where_they_leave_too_few_cores(load: Path) -> None:
    for runnable, crowding in ((2, 0), (3, 0), (4, 3), (40, 39)):
        load.write_text(f"0.00 0.00 0.00 {runnable}/345 12345\n")
        assert busy.count_busy_threads() == runnable - 1
        assert busy.crowding_threads() == crowding


def test_a_process_that_ran_for_a_moment_does_not_count(load: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Iterator[int] = iter([3, 4, 0])
    monkeypatch.setattr(busy, "_running_threads", lambda: next(found))
    assert busy.count_busy_threads() == 0


@pytest.mark.parametrize("text", ["", "0.00 0.00", "a b c d e", "0 0 0 x/y 1"])
def test_a_system_that_does_not_say_counts_as_idle(load: Path, text: str) -> None:
    load.write_text(text)
    assert busy.count_busy_threads() == 0
    load.unlink()
    assert busy.count_busy_threads() == 0


@pytest.mark.parametrize(
    ("runnable", "set_before", "recorded", "then"),
    [
        (1, {}, 0, {}),
        (9, {}, 0, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (9, {}, 1, {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}),
        (9, {}, 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (1, {}, 1, {"OMP_NUM_THREADS": "1"}),
        (9, {"OMP_WAIT_POLICY": "ACTIVE"}, 0, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (9, {"OMP_NUM_THREADS": "3"}, 1, {"OMP_NUM_THREADS": "3"}),
    ],
)
def test_threads_sleep_and_take_long_turns_beside_others_unless_somebody_decided(
    load: Path,
    monkeypatch: pytest.MonkeyPatch,
    runnable: int,
    set_before: dict[str, str],
    recorded: int,
    then: dict[str, str],
) -> None:
    load.write_text(f"0.00 0.00 0.00 {runnable}/345 12345\n")
    monkeypatch.delitem(sys.modules, "torch")  # as if it were not imported yet
    for name in busy.SETTINGS:
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    asked: list[bool] = []
    monkeypatch.setattr(busy, "request_long_turns", lambda: asked.append(True))
    assert busy.avoid_crowding(recorded) == (0 if set_before else runnable - 1)
    assert bool(asked) == (os.environ.get("OMP_WAIT_POLICY") == "PASSIVE")
    assert {name: os.environ[name] for name in busy.SETTINGS if name in os.environ} == then


LONG_TURNS = """
import os, threading
from llamactl.hardware import busy
asked = os.nice(3)
print(busy.request_long_turns(), os.nice(0) == asked)
def turn():
    print(os.sched_rr_get_interval(0))
threading.Thread(target=turn).start()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_turns_of_later_threads_are_long_and_the_priority_stays() -> None:
    lines = subprocess.check_output([sys.executable, "-c", LONG_TURNS], text=True).splitlines()
    asked, is_kept = lines[0].split()
    assert is_kept == "True"
    if asked == "False":
        pytest.skip("this kernel can't be asked")
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12):
        assert float(lines[1]) == pytest.approx(busy.SLICE / 1e9, abs=0.01)  # it counts in ticks


def test_turns_are_left_alone_where_they_mean_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "import os; from llamactl.hardware import busy; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); "
    lines += "print(busy.request_long_turns(), os.sched_getscheduler(0) == os.SCHED_IDLE)"
    if sys.platform == "linux":
        assert subprocess.check_output([sys.executable, "-c", lines], text=True) == "False True\n"
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert not busy.request_long_turns()


@pytest.mark.parametrize(("words", "threads"), [("--preset tiny", "all"), ("--resume begun", "1")])
def test_train_decides_before_torch_is_imported(home: Path, corpus: Path, words: str, threads: str) -> None:
    """OpenMP reads its settings once, when torch loads it: without a setting that sticks, nothing was gained."""
    make_dataset(home / "data" / "addresses", corpus)
    RunDir.from_name("begun").path.mkdir(parents=True)
    RunDir.from_name("begun").environment_path.write_text('{"threads": 1}')
    lines = f"""
import os, sys
from contextlib import suppress
from unittest.mock import patch
from llamactl.cli import app
from llamactl.hardware import busy
for name in busy.SETTINGS:
    os.environ.pop(name, None)
def crowded():
    assert "torch" not in sys.modules
    return 3
with patch.object(busy, "crowding_threads", crowded), patch.object(busy, "usable_cores", lambda: 2):
    with patch("llamactl.cli.train.run_training"), patch("llamactl.cli.train.resume_run"):
        app({["train", *words.split()]}, standalone_mode=False)
print(os.environ["OMP_WAIT_POLICY"], os.environ.get("OMP_NUM_THREADS", "all"))
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.stdout == f"PASSIVE {threads}\n", done.stderr
    assert "This machine is busy (3 other threads on" in done.stderr


@pytest.mark.parametrize(("cores", "before", "then"), [(64, "", "2"), (2, "", ""), (64, "5", "5")])
def test_a_quota_of_two_cores_has_two_threads(
    load: Path, monkeypatch: pytest.MonkeyPatch, cores: int, before: str, then: str
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    for name in busy.SETTINGS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    busy.respect_quota()
    assert os.environ.get("OMP_NUM_THREADS", "") == then
    # A command that this one starts finds its own choice, which is nobody's decision about a busy machine.
    load.write_text("0.00 0.00 0.00 9/345 12345\n")
    assert busy.avoid_crowding() == (0 if before else 8)

"""The command under torchrun, as people start it: processes die, are started again, and hear signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamactl.checkpoint import select as checkpoint_select
from llamactl.runs.run_dir import RunDir
from tests.conftest import TINY, make_dataset
from tests.processes import free_port

pytestmark = pytest.mark.slow

MODEL: Any = TINY["model"]
SHAPE = [f"--set=model.{name}={value}" for name, value in MODEL.items()]
TRAIN = [
    "-m", "llamactl", "train", "--name=a", "--data=addresses", "--tokens=102400", *SHAPE, "--device=cpu", "--precision=fp32",
    "--set=train.tokens_per_step=256", "--set=train.save_every=10", "--set=train.eval_every=200", "--set=train.compile=off",
]  # fmt: skip
PATIENCE = 300.0  # seconds in which all must be over when one is gone


@pytest.fixture(autouse=True)
def addresses(home: Path, corpus: Path) -> None:
    make_dataset(home / "data" / "addresses", corpus)


@contextmanager
def torchrun(*options: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher in a process group of its own, as a terminal gives it, whose screen is read to its end."""
    words = [sys.executable, "-m", "torch.distributed.run", *options]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=surroundings, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def steps(run: str = "a") -> list[dict[str, Any]]:
    path = RunDir.from_name(run).metrics_path
    rows = [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    return [row for row in rows if row["kind"] == "step"]


def until(what: Callable[[], bool]) -> None:
    patience = time.monotonic() + 600
    while not what():
        assert time.monotonic() < patience
        time.sleep(0.02)


def workers(rank: int) -> list[int]:
    """Processes of a rank of ours."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "environ").read_bytes().split(b"\0")
            if {f"RANK={rank}".encode(), f"LLAMACTL_HOME={os.environ['LLAMACTL_HOME']}".encode()} <= set(told):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def alone() -> list[float]:
    """The losses of one process."""
    words = [*TRAIN[:3], "--name=alone", *TRAIN[4:]]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [row["loss"] for row in steps("alone")]


def test_a_run_whose_process_dies_goes_on_by_itself(alone: list[float]) -> None:
    with torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=3", *TRAIN) as process:
        until(lambda: len(steps()) > 25)
        for pid in workers(1):
            os.kill(pid, signal.SIGKILL)
        _, screen = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, screen
    assert [run.path.name for run in RunDir.all()][-1::-1].count("a") == 1
    assert len(RunDir.all()) == 2
    resumed = [row for row in RunDir.from_name("a").rows() if row["kind"] == "resumed"]
    (row,) = resumed
    assert row["step"] >= 20  # or 30, where that was saved before the process was found
    assert row["step"] % 10 == 0
    losses = {row["step"]: row["loss"] for row in steps()}
    assert [losses[step] for step in range(1, 401)] == pytest.approx(alone, abs=1e-3)  # rounding, grown over 400 steps
    assert [losses[step] for step in range(1, 31)] == pytest.approx(alone[:30], abs=1e-5)


def test_a_process_that_dies_takes_the_others_with_it_and_is_named() -> None:
    with torchrun("--standalone", "--nproc-per-node=3", *TRAIN) as process:
        until(lambda: len(steps()) > 5)
        began = time.monotonic()
        for pid in workers(2):
            os.kill(pid, signal.SIGKILL)
        _, screen = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < PATIENCE
    assert process.returncode != 0
    assert "Another process of this run is gone." in screen
    assert "Signal 9 (SIGKILL)" in screen
    assert "rank      : 2" in screen
    assert not workers(0)
    assert not list(RunDir.from_name("a").checkpoints.glob("*.draft"))


@pytest.mark.parametrize("way", ["the launcher alone", "everybody, as Ctrl-C does"])
def test_a_signal_stops_all_with_one_checkpoint(way: str) -> None:
    with torchrun("--standalone", "--nproc-per-node=2", *TRAIN) as process:
        until(lambda: len(steps()) > 15)
        if way == "the launcher alone":
            os.kill(process.pid, signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        _, screen = process.communicate(timeout=PATIENCE)
    run = RunDir.from_name("a")
    last = len(steps())
    assert run.steps()[-1] == last, screen
    assert screen.count("Stopped; the checkpoint of step") == 1
    assert checkpoint_select.find_newest(run) == (run.checkpoint(last), ())
    stopped = [row for row in run.rows() if row["kind"] == "stopped"]
    assert [row["step"] for row in stopped] == [last]


def test_what_is_wrong_is_said_once() -> None:
    with torchrun("--standalone", "--nproc-per-node=3", *TRAIN, "--set=model.n_heads=3") as process:
        _, screen = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert screen.count("✗") == 1, screen
    assert "must be a multiple of n_kv_heads" in screen


def test_two_machines_are_one_run_and_end_together(alone: list[float]) -> None:
    """Two launchers of two processes each; parts within a launcher, copies across."""
    nodes = [
        "--nnodes=2",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-id=a",
    ]
    with torchrun(*nodes, *TRAIN, "--parallel=hsdp") as first, torchrun(*nodes, *TRAIN, "--parallel=hsdp") as second:
        until(lambda: len(steps()) > 30)
        began = time.monotonic()
        for pid in workers(3):
            os.kill(pid, signal.SIGKILL)
        screens = [process.communicate(timeout=PATIENCE)[1] for process in (first, second)]
    assert time.monotonic() - began < PATIENCE
    assert "2 x 2" in "".join(screens) or "hsdp" in "".join(screens)
    assert [row["loss"] for row in steps()[:30]] == pytest.approx(alone[:30], abs=1e-5)


def test_a_command_that_joins_its_own_job_goes_on_with_its_run_and_another_job_does_not() -> None:
    """As a machine that comes back, or a container that is started anew: the same --rdzv-id and the same words."""
    job = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=mine"]
    with torchrun(*job, *TRAIN) as process:
        until(lambda: len(steps()) > 15)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    stopped = len(steps())
    with torchrun(*job, *TRAIN) as process:
        _, screen = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, screen
    assert [row["step"] for row in RunDir.from_name("a").rows() if row["kind"] == "resumed"] == [stopped]
    with torchrun(*job[:-1], "--rdzv-id=other", *TRAIN) as process:
        _, screen = process.communicate(timeout=PATIENCE)
    assert "The run a already exists." in screen

"""What a person sees when the machine is in the way: an exit code that is documented, three lines at most, no traceback."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.runs.run_dir import RunDir
from tests.cli.test_cli import TINY, run
from tests.conftest import make_dataset

pytestmark = pytest.mark.slow
LONG = f"train --tokens 200k {TINY} --set train.eval_every=1000000"
Process = subprocess.Popen[str]


@pytest.fixture(autouse=True)
def data(home: Path, corpus: Path) -> None:
    make_dataset(home / "data" / "addresses", corpus)


def typed(command: str, before: Callable[[], object] | None = None, stdout: object = subprocess.PIPE) -> Process:
    line = [sys.executable, "-m", "llamactl", *shlex.split(command)]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        line, stdout=stdout, stderr=subprocess.PIPE, text=True, env=surroundings, preexec_fn=before, stdin=subprocess.DEVNULL
    )


def ended(process: Process, code: int) -> list[str]:
    """The lines of its error, after those of its plan."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    lines = said.splitlines()
    error = next((number for number, line in enumerate(lines) if line.startswith("✗")), len(lines))
    assert len(lines) - error <= 3
    return lines[error:]


def begun(process: Process, name: str) -> None:
    """Wait for the run's first steps."""
    deadline = time.monotonic() + 300
    while not RunDir.from_name(name).rows():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, code: int) -> None:
    process = typed(f"{LONG} --run a")
    begun(process, "a")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"the checkpoint of step {RunDir.from_name('a').steps()[-1]:,} is safe" in said
    assert "Resume: llamactl train --resume a" in said
    assert "Stopping after this step" in said
    assert "resumed" in run("train --resume a --set train.eval_every=1000000").stderr


def test_a_second_process_is_told_of_the_first() -> None:
    process = typed(f"{LONG} --run a")
    begun(process, "a")
    process.send_signal(signal.SIGSTOP)  # so that it is not over before the others have looked
    assert "a running" in " ".join(run("runs list").stdout.split())
    for command in ("train --resume a", "runs remove a --yes"):
        error = ended(typed(command), 7)
        assert error[0] == f"✗ {RunDir.from_name('a').path} is in use by another process."
        assert str(process.pid) in error[1]
    process.kill()
    process.wait()
    assert "Removed a" in run("runs remove a --yes").stderr


def test_a_disk_that_fills_up_ends_with_its_code_and_every_checkpoint(home: Path, mount: Callable[[Path, str], Path]) -> None:
    disk = mount(home / "runs", "30m")
    process = typed(f"train --run a --tokens 200k {TINY} --set train.save_every=4 --set train.keep_last=1")
    begun(process, "a")
    with pytest.raises(OSError, match="No space"):
        (disk / "ballast").write_bytes(bytes(40_000_000))
    assert "MB are free" in ended(process, 4)[1]
    assert '"damage": null' in run("verify a --json").stdout
    (disk / "ballast").unlink()
    run("train --resume a")


def test_too_little_room_is_said_before_the_first_step(home: Path, mount: Callable[[Path, str], Path]) -> None:
    disk = mount(home / "runs", "2m")
    error = ended(typed(f"{LONG} --run a --set train.keep_last=9 --set train.save_every=2"), 4)
    assert "do not fit" in error[0]
    assert "train.keep_last=1" in error[2]
    assert list(disk.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_named(home: Path) -> None:
    (home / "runs").write_text("a file where the folder should be")
    error = ended(typed(f"{LONG} --run a"), 4)
    assert str(home / "runs") in error[0]


def test_few_open_files_are_said_to_be_the_reason() -> None:
    error = ended(typed(f"{LONG} --run a", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))), 4)
    assert "Too many open files" in " ".join(error)


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = typed(f"{LONG} --run a --json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert ended(process, 141) == []


def test_a_full_stdout_is_an_error_like_any_other() -> None:
    with Path("/dev/full").open("w") as full:
        error = ended(typed(f"{LONG} --run a --json", stdout=full), 4)
    assert "No space left on device" in " ".join(error)

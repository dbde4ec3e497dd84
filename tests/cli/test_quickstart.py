"""From text to a model in one command, and what Ctrl-C does to it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.inline import type_in

SURROUNDINGS = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.mark.slow
def test_a_text_becomes_a_model_that_writes(home: Path) -> None:
    """The time is so short that the least is trained."""
    (home / "my.txt").write_text("The sea is calm tonight. The tide is full, the moon lies fair upon the straits.\n\n" * 400)
    words = [sys.executable, "-m", "llamactl", "quickstart", "my.txt", "--time", "30s"]
    done = subprocess.run(words, cwd=home, env=SURROUNDINGS | {"LLAMACTL_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("prepare my.txt", "train --data my --time", "plot-loss", "sample"):
        assert f"$ llamactl {command}" in done.stderr
    assert "That is your own Llama" in done.stderr
    assert "The" in done.stdout
    assert list(home.glob("runs/*-my/checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_trains_saves_and_says_how_to_resume(home: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "llamactl", "quickstart", "--time", "1h"]
    process = subprocess.Popen(
        words, cwd=home, env=SURROUNDINGS | {"LLAMACTL_HOME": str(home)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(home.glob("runs/*/metrics.jsonl")) or not next(home.glob("runs/*/metrics.jsonl")).read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    if number == signal.SIGINT:  # as a terminal sends it, to all of them
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number
    assert "llamactl train --resume" in error
    assert list(home.glob("runs/*/checkpoints/step-*/state.json"))


def test_a_failed_step_ends_it_with_its_code(home: Path) -> None:
    assert type_in("quickstart", str(home / "nosuch.txt")).code == 3
    assert type_in("quickstart", "--time", "soon").code == 2

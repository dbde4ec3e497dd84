"""The examples are run, or where that takes a GPU or the hub, their commands are parsed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from llamactl.runs.run_dir import RunDir
from tests.test_docs import ALL

EXAMPLES = Path(__file__).parents[1] / "examples"
LINES = [(path.name, line) for path in sorted(EXAMPLES.glob("*.sh")) for line in path.read_text("utf-8").splitlines()]
CELLS = json.loads((EXAMPLES / "colab.ipynb").read_text("utf-8"))["cells"]
# A cell's line may have two commands, of which the second runs where the first fails.
LINES += [
    ("colab.ipynb", command)
    for cell in CELLS
    for line in "".join(cell["source"]).splitlines()
    for command in line.removeprefix("!").split(" || ")
]
BUDGET = "--preset tiny --tokens 61440 --set train.tokens_per_step=2048 --set train.save_every=10 --set train.compile=off"
COMMANDS = [(name, line) for name, line in LINES if line.startswith("llamactl ")]


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[f"{name}-{line[:40]}" for name, line in COMMANDS])
def test_every_command_of_an_example_is_one(name: str, line: str) -> None:
    words = shlex.split(line.replace('"$@"', "my.txt"), comments=True)[1:]
    command = ALL["llamactl"]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, name
        command = command.commands[words.pop(0)]
    command.make_context("llamactl", words)


@pytest.mark.slow
def test_own_text_runs(tmp_path: Path) -> None:
    script = (EXAMPLES / "own_text.sh").read_text("utf-8").replace("--run own-text\n", "--run own-text --tokens 8k\n", 1)
    (tmp_path / "my.txt").write_text("The sea is calm tonight. The tide is full, the moon lies fair.\n\n" * 500)
    (tmp_path / "run.sh").write_text(script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", "run.sh", "my.txt"]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("own-text-model/*/model.safetensors"))


@pytest.mark.slow
def test_python_runs_and_ends_without_a_word_of_complaint(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLES / "train_in_python.py")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "validation" in done.stdout
    assert "bits per byte" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its cells, one after another, as a kernel runs them."""
    cells = json.loads((EXAMPLES / "train.ipynb").read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    words = [sys.executable, "-c", script.replace("100_000", "8_192")]
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout


def run_cells(drive: Path, train: str) -> None:
    """Run the notebook for Colab from its top, as a new session does, with budgets for two cores.

    `train` is "finish", or "kill" for a session that vanishes when the first checkpoint is there.
    """
    budget = {
        "/content/drive/MyDrive": str(drive),
        "openwebtext --max-tokens 500M": "sample",
        "--preset 50m --tokens 500M": BUDGET,
    }
    names: dict[str, object] = {}
    for cell in (cell for cell in CELLS if cell["cell_type"] == "code"):
        lines = "".join(cell["source"])
        for full, small in budget.items():
            lines = lines.replace(full, small)
        commands = [line.removeprefix("!") for line in lines.splitlines() if line.startswith("!")]
        exec("\n".join(line for line in lines.splitlines() if not line.startswith("!")), names)
        for command in commands:
            if command.startswith("pip install") or command == "llamactl doctor":  # which is about this machine
                continue
            with subprocess.Popen(command, shell=True, start_new_session=True) as process:
                while train == "kill" and "llamactl train" in command and process.poll() is None:
                    if RunDir.from_name("colab").steps():
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                        return
                    time.sleep(0.05)
            assert process.returncode == 0, command


@pytest.mark.slow
def test_the_notebook_for_colab_resumes_in_a_second_session(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colab = ModuleType("google.colab")
    colab.drive = SimpleNamespace(mount=lambda _: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(home)
    run_cells(home, "kill")
    run = RunDir.from_name("colab")
    first = max(run.steps())
    run_cells(home, "finish")
    assert max(run.steps()) > first
    resumed = [row["step"] for row in map(json.loads, run.metrics_path.read_text().splitlines()) if row["kind"] == "resumed"]
    assert resumed == [first]
    assert (home / "loss.png").exists()
    run_cells(home, "finish")  # A session after the end trains no more.

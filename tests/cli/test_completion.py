"""What Tab offers, asked for as a shell asks, and that it costs next to nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamactl.cli import completion
from llamactl.config.presets import PRESETS
from llamactl.config.schema import setting_names
from llamactl.corpus.dataset import DatasetDir
from llamactl.runs.run_dir import RunDir

# The console script with a note, on stderr, of what it had to import.
SCRIPT = """
import json, sys
sys.argv = ["llamactl"]
from llamactl.cli import main
try:
    main()
finally:
    sys.stderr.write(json.dumps(sorted(sys.modules)))
"""
# Typer parses with pydantic, so that one is there all the same; what is ours builds no models with it.
HEAVY = {"torch", "numpy", "datasets", "pyarrow", "matplotlib", "tokenizers", "tiktoken", "transformers"}
OURS = {"llamactl.config.schema", "llamactl.corpus.dataset", "llamactl.runs.summary"}


@pytest.fixture(autouse=True)
def things(home: Path) -> None:
    """Two runs, a dataset, and what is neither."""
    for number, name in enumerate(("older", "newer", ".newer.removed", "sp ace", "unfinished")):
        folder = home / "runs" / name
        folder.mkdir(parents=True)
        if name != "unfinished":
            (folder / "config.toml").touch()
            os.utime(folder / "config.toml", (number, number))
    for step in ("step-00000050", "step-00000147", ".step-00000150.draft", "step-x"):
        (home / "runs" / "older" / "checkpoints" / step).mkdir(parents=True)
    for name in ("books", "half"):
        (home / "data" / name).mkdir(parents=True)
    (home / "data" / "books" / "dataset.json").touch()


def tab(words: str) -> tuple[list[str], set[str]]:
    """What bash is offered at the end of a line, and what was imported for it."""
    surroundings = {
        **os.environ,
        "_LLAMACTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=surroundings, check=True)
    return done.stdout.split(), {*json.loads(done.stderr)}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("llamactl sample --run ", ["newer", "older"]),
        ("llamactl sample --run ol", ["older"]),
        ("llamactl eval --run older@", ["older@best", "older@147", "older@50"]),
        ("llamactl surprise --run ", ["newer", "older"]),
        ("llamactl surprise --compare older@1", ["older@147"]),
        ("llamactl plot-loss ", ["newer", "older"]),
        ("llamactl export gguf ", ["newer", "older"]),
        ("llamactl export hf n", ["newer"]),
        ("llamactl export web o", ["older"]),
        ("llamactl runs show ", ["newer", "older"]),
        ("llamactl runs remove ", ["newer", "older"]),
        ("llamactl bench decode --run ", ["newer", "older"]),
        ("llamactl bench decode --preset 1", ["10m", "150m", "1b"]),
        ("llamactl bench train --data ", ["books"]),
        ("llamactl eval --data b", ["books"]),
        ("llamactl config ", ["newer", "older"]),
        ("llamactl config --preset ", [*PRESETS]),
        ("llamactl sample --run nosuch@", []),
    ],
)
def test_names_come_from_the_disk_alone(words: str, offered: list[str]) -> None:
    found, imported = tab(words)
    assert found == offered
    assert not imported & (HEAVY | OURS)


@pytest.mark.parametrize("words", ["llamactl config --set ", "llamactl bench train --set optim."])
def test_settings_are_offered_up_to_their_values(words: str) -> None:
    found, imported = tab(words)
    assert found == [f"{name}=" for name in setting_names() if name.startswith(words.split(" ")[-1])]
    assert not imported & HEAVY


def test_what_is_offered_is_what_is_there() -> None:
    assert completion.runs("") == [run.path.name for run in RunDir.all() if " " not in run.path.name]
    assert completion.datasets("") == [DatasetDir.from_name("").path.name]


def test_nothing_there_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACTL_HOME", str(home / "nowhere"))
    assert completion.runs("") == completion.datasets("") == completion.checkpoints("a@") == []


def test_damaged_folders_are_no_error(home: Path) -> None:
    for name, target in (("itself", "config.toml"), ("nowhere", "missing"), ("device", "/dev/null")):
        (home / "runs" / name).mkdir()
        (home / "runs" / name / "config.toml").symlink_to(target)
    (home / "runs" / "device" / "checkpoints").symlink_to("checkpoints")
    assert {"older", "newer"} <= set(completion.runs(""))
    assert completion.checkpoints("device@") in ([], ["device@best"])


def test_a_home_below_a_tilde(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.setenv("LLAMACTL_HOME", f"~/{home.name}")
    assert completion.runs("ol") == ["older"]
    monkeypatch.setenv("LLAMACTL_HOME", "~nobody-of-this-name")
    assert completion.runs("") == []


def test_many_runs_are_named_at_once(home: Path) -> None:
    for number in range(300):
        (home / "runs" / f"run-{number}").mkdir()
        (home / "runs" / f"run-{number}" / "config.toml").touch()
    times = []
    for _ in range(5):
        started = time.process_time()
        assert len(completion.runs("run-")) == 300
        times.append(time.process_time() - started)
    assert min(times) < 0.05

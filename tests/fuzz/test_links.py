"""Nothing of a run, a dataset or a checkpoint is read or written through a link that leads out of it; no FIFO is waited for.

`records.open_file` and `records.open_descriptor` make that so: they open folder by folder, follow no link and take regular
files alone.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.table import FILES, LAST, commands

Typed = Callable[..., dict[str, Any]]

SECRET = "a secret that nobody is to read"
ALLOWED = {0, 2, 3, 4}


def holds(folder: Path, text: str) -> list[Path]:
    """The regular files below a folder that hold a text."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_link_to_a_secret_is_neither_read_nor_written(file: str, own: Path, typed: Typed) -> None:
    secret = own.parent / "secret"
    for content in (f"{SECRET}\n", f'{{"command": "{SECRET}", "kind": "step", "step": 1}}\n', "\x89PNG" + SECRET):
        secret.write_text(content)
        (own / file).unlink(missing_ok=True)
        (own / file).symlink_to(secret)
        for command in commands(file)[::3]:
            if "remove" in command:
                continue
            answer = typed(command)
            assert answer["code"] in ALLOWED, f"{command}: {answer['told']}"
            assert SECRET not in answer["told"], command
            assert secret.read_text() == content, command
            if not (own / file).is_symlink():  # the command wrote a file of its own in its place, as it may
                (own / file).unlink()
                (own / file).symlink_to(secret)
    assert holds(own, SECRET) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["runs/a/checkpoints", LAST, "data/d/train", "runs/a/tensorboard"])
def test_a_folder_is_no_link_either(folder: str, own: Path, typed: Typed) -> None:
    elsewhere = own.parent / "elsewhere"
    if (own / folder).exists():
        shutil.move(own / folder, elsewhere)
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / ".draft").mkdir()
    (own / folder).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    for command in (
        "train --resume a --tokens 5632 --track tensorboard", "sample x --run a@20 --max-new-tokens 2", "verify runs/a",
        "verify data/d", "runs list", "runs show a", "export hf a@20", "train --data d --dry-run",
    ):  # fmt: skip
        answer = typed(command)
        assert answer["code"] in ALLOWED, f"{command}: {answer['told']}"
    assert sorted(elsewhere.rglob("*")) == before
    assert typed("train --resume a --tokens 5632 --track tensorboard")["code"] in (0, 3)


@pytest.mark.slow
def test_the_folder_of_an_artifact_itself_may_be_on_another_disk(own: Path, typed: Typed) -> None:
    for folder in ("runs/a", "data/d"):
        moved = own.parent / folder.replace("/", "-")
        shutil.move(own / folder, moved)
        (own / folder).symlink_to(moved)
    for command in ("runs show a", "sample x --run a --max-new-tokens 2", "train --resume a --tokens 5632", "verify data/d"):
        answer = typed(command)
        assert answer["code"] == 0, f"{command}: {answer['told']}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["metrics.jsonl", "samples.jsonl", "loss.png", "report.html", ".config.toml.draft", ".plan.json.draft", "plan.json"]
)
@pytest.mark.parametrize("command", ["train --resume a --tokens 5632", "plot-loss a", "report a"])
def test_what_is_written_goes_through_no_link(file: str, command: str, own: Path, typed: Typed) -> None:
    victim = own.parent / "start-file-of-a-shell"
    victim.write_text("echo\n")
    (own / "runs/a" / file).unlink(missing_ok=True)
    (own / "runs/a" / file).symlink_to(victim)
    answer = typed(command)
    assert answer["code"] in ALLOWED, answer["told"]
    assert victim.read_text() == "echo\n"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
@pytest.mark.parametrize("file", ["lock", "metrics.jsonl", "config.toml", "loss.png"])
def test_nothing_waits_for_a_fifo(kind: str, file: str, own: Path, typed: Typed) -> None:
    path = own / "runs/a" / file
    path.unlink()
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    for command in ("runs list", "runs show a", "watch a", "export hf a", "train --resume a --tokens 5632", "verify runs/a"):
        answer = typed(command)
        assert answer["code"] in ALLOWED, f"{command}: {answer['told']}"
    listed = typed("runs list")["told"]
    assert "\nb " in listed
    assert "\na " in listed or listed.startswith("a ")

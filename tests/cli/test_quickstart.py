"""From text to a model in one command, and what Ctrl-C does to it."""

import json
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from llamactl.cli import quickstart
from llamactl.cli.hints import command_line
from llamactl.cli.quickstart import learn_from_several, longer_time, tokenizer_for_time
from llamactl.config.schema import build_config, preset_settings
from llamactl.corpus.parts import Part
from llamactl.corpus.sources import sample_source
from llamactl.planning import timed
from llamactl.runs.run_dir import RunDir
from llamactl.storage.home import LONGEST_NAME, make_name, shorten_name
from llamactl.training.events import EndedEarly, event_to_row
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
    assert "llamactl export web" in done.stderr
    assert "The" in done.stdout
    assert list(home.glob("runs/*-my/checkpoints/step-*"))


def test_a_used_up_text_is_learned_from_several_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands as they are printed: other seeds, then one that names them all; with too little time there are none."""
    folder = RunDir.from_name("first")
    settings = {"data": {"name": "my"}, "train": {"tokens": 5_120, "tokens_per_step": 512, "dropout": 0.2, "patience": 0}}
    folder.start(build_config([preset_settings("tiny"), settings]), {})
    folder.keep_plan({"epochs": 16.0})
    typed: list[str] = []
    monkeypatch.setattr(quickstart, "run_step", lambda command, to_continue: typed.append(command))
    assert learn_from_several(folder, 10, time.monotonic() + 20, "") == "first"
    assert not typed
    assert learn_from_several(folder, 10, time.monotonic() + 45, "") == "first-taught"
    begin = "train --data my --preset tiny --tokens 5120 --set train.tokens_per_step=512 --set train.dropout=0.2"
    begin += " --set train.patience=0 --set train.compile=auto"
    assert all(command.startswith(f"{begin} --set optim.weight_decay=0.1 ") for command in typed)
    # The runs took no time at all, so that there was some for a fourth.
    assert [command.partition("weight_decay=0.1 ")[2] for command in typed] == [
        "--set train.seed=1 --set data.seed=1 --run first-2",
        "--set train.seed=2 --set data.seed=2 --run first-3",
        "--set train.seed=3 --set data.seed=3 --run first-4",
        "--set train.seed=4 --set data.seed=4 --teachers first,first-2,first-3,first-4 --run first-taught",
    ]


@pytest.mark.parametrize(("ended_early", "runs"), [(False, 0), (True, 4)])
def test_a_run_that_ended_early_has_used_up_its_text(
    ended_early: bool, runs: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDir.from_name("first")
    settings = {"data": {"name": "my"}, "train": {"tokens": 5_120, "dropout": 0.2, "patience": 3}}
    folder.start(build_config([preset_settings("tiny"), settings]), {})
    folder.keep_plan({"epochs": 7.0})
    if ended_early:
        row = event_to_row(EndedEarly(4, 4_096, 1e9, 5.0, 3.2, 3))
        folder.metrics_path.write_text(json.dumps(row) + "\n")
    typed: list[str] = []
    monkeypatch.setattr(quickstart, "run_step", lambda command, to_continue: typed.append(command))
    learn_from_several(folder, 10, time.monotonic() + 45, "")
    assert len(typed) == runs
    assert all("--set train.patience=3" in command for command in typed)


@pytest.mark.parametrize(("code", "raises"), [(4, False), (137, False), (130, True), (143, True)])
def test_a_run_alike_that_fails_leaves_the_first(
    code: int, raises: bool, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunDir.from_name("first")
    folder.start(build_config([preset_settings("tiny"), {"data": {"name": "my"}, "train": {"dropout": 0.2}}]), {})
    folder.keep_plan({"epochs": 16.0})

    def fail(*_: object) -> None:
        raise typer.Exit(code)

    monkeypatch.setattr(quickstart, "run_step", fail)
    if raises:  # Ctrl-C ends all of it
        with pytest.raises(typer.Exit):
            learn_from_several(folder, 10, time.monotonic() + 100, "")
        return
    assert learn_from_several(folder, 10, time.monotonic() + 100, "") == "first"
    assert "What follows is of first" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_trains_saves_and_says_how_to_resume(home: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "llamactl", "quickstart", "--time", "1h"]
    process = subprocess.Popen(
        words, cwd=home, env=SURROUNDINGS | {"LLAMACTL_HOME": str(home)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 900
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


# LLAMACTL_MOMENTS=10 pytest -m slow tests/cli/test_quickstart.py -k random
MOMENTS = int(os.environ.get("LLAMACTL_MOMENTS", "3"))
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def in_a_terminal(words: list[str], home: Path, moment: float) -> tuple[int, str]:
    """Run a command in a terminal, press Ctrl-C after some seconds; return its exit code and what it printed."""
    terminal, inside = pty.openpty()
    before = termios.tcgetattr(inside)
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "LLAMACTL_HOME": str(home)}
    for size in ("COLUMNS", "LINES"):
        surroundings.pop(size, None)
    process = subprocess.Popen(
        words, cwd=home, env=surroundings, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    printed: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(terminal, 1 << 16):
                printed.append(data)
        except OSError:  # the terminal is gone
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(moment)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    code = process.wait(300)
    after = termios.tcgetattr(inside)
    os.close(inside)
    reader.join(10)
    os.close(terminal)
    text = b"".join(printed).decode()
    assert after == before
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l"), "the alternate screen is left"
    assert text.rfind("\x1b[?25l") <= text.rfind("\x1b[?25h"), "the cursor is shown"
    return code, CONTROL.sub("", text)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(MOMENTS))
def test_ctrl_c_at_a_random_moment_leaves_a_command_to_continue(home: Path, number: int) -> None:
    (home / "my.txt").write_text("The sea is calm tonight. The tide is full, the moon lies fair upon the straits.\n\n" * 400)
    words = [sys.executable, "-m", "llamactl", "quickstart", "my.txt", "--time", "25s"]
    code, text = in_a_terminal(words, home, random.Random(number).uniform(1, 14))
    assert "Traceback" not in text
    # It was over, even if Python was still shutting down, or had not begun.
    if code == 0 or "With more time: " in text or "$ llamactl" not in text:
        return
    assert code == 130, text
    told = re.findall(r"(?:Continue|Resume|Next): llamactl (.*)", text)
    assert told, text
    command = [sys.executable, "-m", "llamactl", *shlex.split(told[-1])]
    done = subprocess.run(command, cwd=home, env=SURROUNDINGS | {"LLAMACTL_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(home.glob("runs/*/checkpoints/step-*/state.json"))


def test_a_failed_step_ends_it_with_its_code(home: Path) -> None:
    assert type_in("quickstart", str(home / "nosuch.txt")).code == 3
    assert type_in("quickstart", "--time", "soon").code == 2


@pytest.mark.parametrize("prompt", ["--- title: notes", "-", "Once upon", "It's", ""])
@pytest.mark.parametrize("options", ["", "--run mine --n 2"])
def test_a_prompt_is_never_an_option(prompt: str, options: str) -> None:
    words = shlex.split(command_line("sample", [prompt], shlex.split(options)))[1:]
    dashes = words.index("--") if "--" in words else len(words)
    assert [word for word in words if word == prompt] == [prompt]
    assert not prompt.startswith("-") or words.index(prompt, dashes) == len(words) - 1
    assert shlex.split(options) == [word for word in words if word not in (prompt, "--")]


@pytest.mark.parametrize(("time", "longer"), [(90, "1h"), (600, "1h"), (1800, "3h"), (7200, "12h"), (86_400, "144h")])
def test_more_time_is_more(time: float, longer: str) -> None:
    assert longer_time(time) == longer


def test_a_name_of_any_length_has_a_run_and_one_that_learns_from_it(home: Path) -> None:
    name = make_name("The Life and Adventures of a Person whose Book has a Very Long Title Indeed, in two Volumes")
    run = RunDir.with_new_name(name).path.name
    assert RunDir.from_name(f"{run}-taught").path.name == f"{run}-taught"
    assert RunDir.from_name(f"{run}-999").path.name == f"{run}-999"
    assert len(shorten_name(name, 8) + "-bpe2048") <= LONGEST_NAME


def test_ctrl_c_between_two_steps_names_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("llamactl.cli.quickstart.run_step", lambda *_: None)
    monkeypatch.setattr("llamactl.cli.quickstart.train_until", lambda *_: "mine")
    monkeypatch.setattr("llamactl.cli.quickstart.held_out_prompt", interrupted)
    answer = type_in("quickstart")
    assert answer.code == 130
    assert "Continue: llamactl plot-loss mine" in answer.err


def test_a_large_text_has_a_tokenizer_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "bytes_in_time", lambda world, rate, seconds: int(seconds * 100_000))
    large = replace(sample_source(), tokenizer="bpe:16384", pieces=((Part("text", "a.txt", 110 << 20),),))
    assert [tokenizer_for_time(large, seconds) for seconds in (120, 600, 10_000)] == ["bpe:4096", "bpe:8192", "bpe:8192"]
    assert tokenizer_for_time(sample_source(), 120) == "bpe:4096", "a small text has its own in any time"
    small = replace(large, tokenizer="bpe:2048", pieces=((Part("text", "a.txt", 2 << 20),),))
    chosen = [tokenizer_for_time(small, seconds) for seconds in (10, 60, 65, 600, 10_000)]
    assert chosen == ["bpe:4096", "bpe:4096", "bpe:2048", "bpe:2048", "bpe:2048"], "with time to read it more than twice"

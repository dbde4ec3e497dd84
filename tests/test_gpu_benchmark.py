"""benchmarks/gpu.py in a half hour: rows are kept as they are measured, and the same command continues."""

import argparse
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.scripts import load_benchmark

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_benchmark("gpu", monkeypatch)


def measured_rows(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "gpu.jsonl").read_text().splitlines()]


def test_rows_are_kept_failures_are_repeated_and_no_row_begins_too_late(
    script: ModuleType, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, measured, broken = [0.0], list[str](), [True]

    def row(name: str, minutes: float) -> Callable[[], Any]:
        def work() -> dict[str, float]:
            measured.append(name)
            clock[0] += 60 * minutes
            if name == "b" and broken.pop():
                raise RuntimeError("a card that is taken away")
            return {"minutes": minutes}

        return work

    def rows(_: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield from ((name, row(name, minutes)) for name, minutes in (("a", 1), ("b", 2), ("c", 6), ("d", 1)))

    monkeypatch.setattr(script.time, "monotonic", lambda: clock[0])
    monkeypatch.setitem(script.PARTS, "speed", rows)
    options = argparse.Namespace(home=home, device="cpu", minutes=8.5, page=home / "page.md")
    options.page.write_text(script.BEGIN + script.END)
    script.measure("speed", options)
    assert measured == ["a", "b", "c"]
    assert "the same command continues" in capsys.readouterr().out
    broken.append(False)
    script.measure("speed", options)
    assert measured == ["a", "b", "c", "b", "d"]
    assert ["error" in each for each in measured_rows(home)] == [False, True, False, False, False]
    script.table(options)
    assert options.page.read_text().count("| b |") == 1


SLEEPS = "import time; print('asleep', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEPS}"


@pytest.mark.parametrize("place", ["this process", SLEEPS, DEAF], ids=["this process", "a command", "a deaf command"])
def test_what_runs_when_the_time_is_over_is_stopped(
    script: ModuleType, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    options = argparse.Namespace(home=home, device="cpu", minutes=0.02)

    def work() -> Any:
        return time.sleep(60) if place == "this process" else script.finish([sys.executable, "-c", place], options)

    monkeypatch.setattr(script, "GRACE", 0.5)
    monkeypatch.setitem(script.PARTS, "speed", lambda _: iter([("long", work), ("next", work)]))
    begun = time.monotonic()
    script.measure("speed", options)
    assert time.monotonic() - begun < 20
    assert [(row["name"], row["error"]) for row in measured_rows(home)] == [
        ("long", "TimeoutError: the time is over: the same command continues")
    ]
    assert "the same command continues" in capsys.readouterr().out.splitlines()[-1]


def test_a_row_that_failed_says_why(script: ModuleType, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(home=home, device="cpu", minutes=1)
    rows = {"missing": "import a_package_that_is_missing", "there": "print(1)"}
    work = {name: lambda code=code: script.finish([sys.executable, "-c", code], options) for name, code in rows.items()}
    monkeypatch.setitem(script.PARTS, "speed", lambda _: iter(work.items()))
    script.measure("speed", options)
    failed, there = measured_rows(home)
    assert failed["error"].startswith("RuntimeError: exit code 1")
    assert failed["error"].endswith("No module named 'a_package_that_is_missing'")
    assert there["found"] == "1\n"


@pytest.mark.parametrize("checkout", ["", "nowhere", "nanogpt"])
def test_nanogpt_is_left_out_with_a_word_where_there_is_no_checkout(
    script: ModuleType, home: Path, capsys: pytest.CaptureFixture[str], checkout: str
) -> None:
    (home / "nanogpt").mkdir()
    (home / "nanogpt" / "model.py").touch()
    nanogpt = checkout and str(home / checkout)
    options = argparse.Namespace(home=home, device="cpu", preset="tiny", batches=[(4, 128)], nanogpt=nanogpt)
    names = [name for name, _ in script.speed(options)]
    assert any("Hugging Face" in name for name in names)
    assert any("nanoGPT" in name for name in names) == (checkout == "nanogpt")
    assert ("nanoGPT, compiled is left out" in capsys.readouterr().out) == (checkout != "nanogpt")


def test_the_wheels_to_carry_are_what_llamactl_imports(script: ModuleType) -> None:
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {Requirement(line).name for line in project["dependencies"]}
    (listed,) = re.findall(r"pip download ([^`]*)", script.__doc__ or "")
    comes_with_torch_and_transformers = {"torch", "jinja2", "numpy", "safetensors", "tokenizers"}
    assert needed - set(listed.split()) == comes_with_torch_and_transformers | {"datasets", "matplotlib"}


@pytest.mark.slow
def test_a_run_and_its_table_on_the_cpu(script: ModuleType, home: Path) -> None:
    (home / "text.txt").write_text("The sea is calm tonight. The tide is full, the moon lies fair.\n\n" * 1000)
    (home / "page.md").write_text(f"# Page\n\n{script.BEGIN}{script.END}")
    words = ["--home", str(home), "--page", str(home / "page.md"), "--device", "cpu", "--preset", "tiny", "--tokens", "8k"]
    for part in ("run", "table"):
        line = [sys.executable, str(SCRIPT), part, *words, "--text", str(home / "text.txt")]
        subprocess.run(line, check=True, stdout=subprocess.PIPE)
    assert [row["name"] for row in measured_rows(home)] == ["prepare", "train, tiny, 8k tokens", "plot-loss", "sample", "eval"]
    assert not any("error" in row for row in measured_rows(home)), (home / script.LOG).read_text()
    assert "| eval | tokens " in (home / "page.md").read_text()

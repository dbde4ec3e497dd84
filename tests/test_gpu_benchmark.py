"""benchmarks/gpu.py in a half hour: rows are kept as they are measured, and the same command continues."""

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    options = argparse.Namespace(home=home, device="cpu", minutes=8.5)
    script.measure("speed", options)
    assert measured == ["a", "b", "c"]
    assert "the same command continues" in capsys.readouterr().out
    broken.append(False)
    script.measure("speed", options)
    assert measured == ["a", "b", "c", "b", "d"]
    written = [json.loads(line) for line in (home / "gpu.jsonl").read_text().splitlines()]
    assert ["error" in each for each in written] == [False, True, False, False, False]
    capsys.readouterr()
    script.table(options)
    assert capsys.readouterr().out.count("| b |") == 1

"""Runs beside each other, as people type it."""

import json
from pathlib import Path

import pytest

from llamactl.config.schema import build_config
from llamactl.runs.run_dir import RunDir
from tests.cli.test_cli import run
from tests.conftest import make_dataset


@pytest.fixture
def two(home: Path) -> None:
    """Two runs with a step each, one of them with a validation, made with another config on another machine."""
    for name, lr, device in (("a", 0.1, "cpu"), ("b", 0.2, "\x1b[2J[bold]")):
        folder = RunDir.from_name(name)
        folder.start(build_config([{"optim": {"lr": lr}}]), {"device": device, "dataset": {"name": "d", "digest": name * 64}})
        row = {"kind": "step", "step": 1, "tokens": 1234, "flops": 1.0, "seconds": 62.0, "loss": 9.0, "tokens_per_second": 20.0}
        rows = [{**row, "memory": 2_000_000}]
        rows += [{**row, "kind": "validation", "loss": 8.5, "bits_per_byte": 2.5}] if name == "a" else []
        folder.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("two")
def test_settings_and_results_are_beside_each_other() -> None:
    done = run("runs diff a b")
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in rows}
    assert done.stdout.split()[:2] == ["a", "b"]
    assert cells["optim.lr"] == ["0.1", "0.2"]
    assert cells["device"] == ["cpu", "\\x1b[2J[bold]"]
    assert cells["dataset"] == ["aaaaaaaaaaaa…", "bbbbbbbbbbbb…"]
    assert cells["tokens"] == ["1,234", "1,234"]
    assert cells["validation, nats per token"] == ["8.5000", "none yet"]
    assert cells["training time"] == ["1m 02s", "1m 02s"]
    assert cells["peak memory"] == ["2 MB", "2 MB"]
    assert "only bits per byte compares" in done.stderr
    assert "train.tokens" not in done.stdout


@pytest.mark.usefixtures("two")
def test_the_difference_as_json_is_whole() -> None:
    record = json.loads(run("runs diff b a --json").stdout)
    assert record["names"] == ["b", "a"]
    assert record["settings"] == {"optim.lr": [0.2, 0.1]}
    assert record["environment"]["dataset"] == ["b" * 64, "a" * 64]
    assert record["results"]["bits_per_byte"] == [None, 2.5]
    assert len(record["cautions"]) == 1


@pytest.mark.usefixtures("two")
def test_what_can_not_be_compared_is_said() -> None:
    assert "are the same" in run("runs diff a a").stderr
    assert "runs diff A B" in run("runs diff a", code=2).stderr
    assert "Did you mean" in run("runs diff a bb", code=3).stderr
    assert "Example: llamactl runs diff" in run("runs diff --help").stdout


def test_references_of_another_text_are_drawn_when_asked_for_and_said(home: Path, corpus: Path) -> None:
    data = make_dataset(home / "data" / "d", corpus, "bytes")
    folder = RunDir.from_name("a")
    folder.start(build_config([{"data": {"name": "d"}}]), {"dataset": {"name": "d", "digest": data.info().digest}})
    row = {"kind": "step", "flops": 1.0, "seconds": 62.0, "loss": 9.0, "tokens_per_second": 20.0, "memory": 1}
    rows = [{**row, "step": step, "tokens": step * 100} for step in range(1, 9)]
    folder.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = run("plot-loss --json")
    assert json.loads(plain.stdout)["references"] == []
    assert "OpenWebText" not in plain.stderr
    done = run("plot-loss --reference gpt2 --reference notebook --json")
    (label,) = json.loads(done.stdout)["references"]
    assert label.startswith("GPT-2 124M: 0.71 at this tokenizer's 1.00 bytes")
    assert "these runs were trained on another text" in done.stderr
    assert "it starts after these runs end: notebook" in done.stderr
    assert "Did you mean" in run("plot-loss --reference gtp2", code=2).stderr

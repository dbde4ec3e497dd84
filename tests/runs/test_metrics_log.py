"""Logs of any length and from anybody: rows are checked where they are read, and summaries hold a bounded part of them.

`llamactl/runs/metrics_log.py` is the one reader of logs.
"""

import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llamactl.config.schema import build_config
from llamactl.errors import DataError
from llamactl.metrics.monitor import Monitor, record_events
from llamactl.report.plots import read_curve
from llamactl.runs.metrics_log import CHUNK, LONGEST_ROW, last_rows, parse_row, read_columns, read_rows, whole_lines
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import compare_runs, summarize_run
from llamactl.runs.tail import Tail
from llamactl.training.events import Stepped, event_from_row

MANY = 200_000


def step(number: int, **over: Any) -> dict[str, Any]:
    numbers = {"loss": 5 - number / MANY, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 9.5, "mfu": 0.1, "memory": 9}
    return {"kind": "step", "step": number, "tokens": 9 * number, "flops": 1e9, "seconds": number / 10, **numbers, **over}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of many rows, whose only validation is far from its end."""
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    validation = {
        "kind": "validation",
        "step": 9,
        "tokens": 81,
        "flops": 1e9,
        "seconds": 0.9,
        "loss": 4.5,
        "bits_per_byte": 2.0,
    }
    return write(path, validation, *map(step, range(1, MANY + 1)))


@pytest.fixture
def run(home: Path, long: Path) -> RunDir:
    run = RunDir.from_name("a")
    run.start(build_config([{"data": {"name": "d"}, "train": {"tokens": 9 * MANY, "tokens_per_step": 9}}]), {"device": "cpu"})
    run.metrics_path.hardlink_to(long)
    return run


def test_a_summary_reads_the_end_alone(run: RunDir) -> None:
    tracemalloc.start()
    started = time.process_time()
    summary = summarize_run(run)
    took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (summary.step, summary.validation_loss, summary.loss) == (MANY, 4.5, 4.0)
    assert took < 2  # 0.1 s on a core of its own
    assert peak < 8 * CHUNK


@pytest.mark.slow
def test_a_long_log_is_drawn_compared_and_resumed_in_bounded_memory(run: RunDir) -> None:
    def curve() -> object:
        return read_curve(run, "tokens")

    for reading in (curve, lambda: compare_runs([run, run]), lambda: Monitor(run)):
        tracemalloc.start()
        reading()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 400 * MANY  # bytes; as dictionaries the rows take 1,500 each


def test_the_last_row_of_a_step_wins_whatever_the_order(tmp_path: Path) -> None:
    path = write(tmp_path / "log", step(1), step(2, loss=9.0), step(3, loss=7.0), step(2, loss=8.0), step(1, loss=None))
    columns = read_columns(path, {"step": ("loss",), "spike": ("loss",)})
    assert columns["step"]["step"].tolist() == [1, 2, 3]
    assert columns["step"]["loss"].tolist()[1:] == [8.0, 7.0]
    assert math.isnan(columns["step"]["loss"][0])
    assert len(columns["spike"]["loss"]) == 0
    assert last_rows(path, ("step", "validation"))["step"] == {**step(1), "loss": None}


def test_a_resumed_run_is_where_its_last_row_is(run: RunDir) -> None:
    run.metrics_path.unlink()
    write(run.metrics_path, *map(step, range(1, 31)), {"kind": "resumed", "step": 20}, step(21), step(22))
    assert summarize_run(run).step == 22


WRONG: dict[str, Any] = {
    "a loss that is a text": step(1, loss="low"),
    "a loss that is true": step(1, loss=True),
    "a step that is true": step(1) | {"step": True},
    "a step below zero": step(1) | {"step": -1},
    "a step of 400 digits": step(1) | {"step": 10**400},
    "a step of 2^63": step(2**63),
    "a fraction of a step": '{"kind": "step", "step": 1.5}',
    "a kind that is a number": step(1) | {"kind": 3},
    "a list": [],
    "a number": 3,
    "nothing": "",
    "half": '{"kind": "st',
    "a depth of 100,000": '{"kind": "step", "step": 1, "x": ' + "[" * 100_000,
    "bytes that are no text": '{"kind": "\udcff"}',
    "tokens that are a list": step(1, tokens=[1]),
    "seconds that are a text": step(1, seconds="9"),
    "damaged that is a text": {"kind": "resumed", "step": 1, "damaged": "x"},
    "a prompt that is a number": {"kind": "sample", "step": 1, "prompt": 3},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_named_and_breaks_no_list(case: str, run: RunDir) -> None:
    row = WRONG[case]
    run.metrics_path.unlink()
    lines = [json.dumps(step(1)), row if isinstance(row, str) else json.dumps(row)]
    run.metrics_path.write_bytes("\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2, is damaged"):
        list(read_rows(run.metrics_path))
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2, is damaged"):
        read_curve(run, "step")
    assert summarize_run(run).condition in ("damaged", "stopped")
    assert [row["step"] for row in Tail(run.metrics_path).rows()] == [1]


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    for written in ("NaN", "Infinity", "-Infinity", "1e400", "null"):
        row = parse_row(f'{{"kind": "skipped", "step": 1, "loss": {written}}}'.encode())
        assert row["loss"] is None
    event = event_from_row({**step(1), "loss": None})
    assert isinstance(event, Stepped)
    assert math.isnan(event.loss)


def test_a_line_without_an_end_is_bounded(run: RunDir) -> None:
    run.metrics_path.unlink()
    with run.metrics_path.open("wb") as file:
        file.write(json.dumps(step(1)).encode() + b"\n")
        file.truncate(1 << 30)
    started = time.perf_counter()
    with pytest.raises(DataError, match="more than"):
        list(read_rows(run.metrics_path))
    with pytest.raises(DataError, match="more than"), run.metrics_path.open("rb") as file:
        whole_lines(file, run.metrics_path)
    with pytest.raises(DataError, match="more than"):
        next(record_events(iter([]), run))
    assert summarize_run(run).condition == "damaged"
    assert run.metrics_path.stat().st_size == 1 << 30
    assert Tail(run.metrics_path).rows()[0]["step"] == 1
    assert time.perf_counter() - started < 5
    assert LONGEST_ROW < 1 << 30


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log", step(1), {"kind": "step", "step": 2})
    with pytest.raises(DataError, match="line 2") as caught:
        read_columns(path, {"step": ("loss",)})
    assert "loss is missing" in caught.value.why

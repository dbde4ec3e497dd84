"""Rows that are decoded many at once are those that are validated one by one."""

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from llamactl.errors import DataError
from llamactl.runs import metrics_log
from llamactl.runs.metrics_log import CHUNK, last_rows, read_columns
from llamactl.runs.rows import Row, decode_rows
from llamactl.training import events
from tests.runs.test_metrics_log import WRONG, step, write

WANTED = {"step": ("loss", "seconds", "memory"), "validation": ("loss",), "resumed": ()}


def read(path: Path) -> Any:
    """What is read, or the error."""
    try:
        columns = read_columns(path, WANTED)
    except DataError as error:
        return str(error)
    return {kind: {name: column.tobytes() for name, column in found.items()} for kind, found in columns.items()}


def test_every_field_of_an_event_is_known() -> None:
    """So that what `watch` and `report` read has the type that they expect, and is decoded at once."""
    written = {field.name for kind in get_args(events.Event) for field in fields(kind)}
    assert written <= Row.__annotations__.keys()


def test_damage_of_any_byte_is_seen_as_by_validating_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it leaves a row that is valid; most of the logs are decoded at once."""
    draw, path, at_once = random.Random(3), tmp_path / "log", 0
    rows = [step(1), step(2, loss=None), {"kind": "validation", "step": 2, "loss": 1e-7, "eval_tokens": 9}, step(3, loss=4)]
    whole = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    parts = [
        b"\n",
        b"\n\n",
        b" ",
        b"{",
        b"}",
        b'"',
        b",",
        b"0",
        b"-",
        b"1e999",
        b"NaN",
        b"\\u00e9",
        b"\xff",
        b"\t",
        b"[",
        b"null",
    ]
    for _ in range(3000):
        log = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2))):
            place = draw.randrange(len(log))
            log[place : place + draw.choice((0, 1, 1, 3))] = draw.choice(parts)
        path.write_bytes(log)
        found = read(path)
        at_once += decode_rows(bytes(log), WANTED) is not None
        with monkeypatch.context() as patch:
            patch.setattr(metrics_log, "decode_rows", lambda *_: None)
            assert read(path) == found, log
    assert at_once > 100


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_never_decoded(case: str, tmp_path: Path) -> None:
    row = WRONG[case]
    text = json.dumps(step(1)) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n"
    assert decode_rows(text.encode("utf-8", "surrogateescape"), WANTED) is None


def test_a_usual_log_is_decoded(tmp_path: Path) -> None:
    rows = [step(1), {"kind": "saved", "step": 1, "path": "x"}, {"kind": "resumed", "step": 1, "damaged": ["x"], "differs": []}]
    found = decode_rows("".join(json.dumps(row) + "\n" for row in rows).encode(), WANTED)
    assert found is not None
    assert [len(found[kind][0]) for kind in WANTED] == [1, 0, 1]


def test_lines_are_counted_over_blocks(tmp_path: Path) -> None:
    """A wrong row far from the beginning, and a half one at the end, which was a killed writer's."""
    many = 2 * CHUNK // len(json.dumps(step(1)))
    path = write(tmp_path / "log", *map(step, range(1, many)), {"kind": "step", "step": many}, step(many + 1))
    with pytest.raises(DataError, match=f"line {many}, is damaged"):
        read_columns(path, {"step": ("loss",)})
    path = write(tmp_path / "log", *map(step, range(1, many)))
    path.write_bytes(path.read_bytes() + b'{"kind": "step", "st')
    columns = read_columns(path, {"step": ("tokens",)})["step"]
    assert np.array_equal(columns["step"], np.arange(1, many))
    assert np.array_equal(columns["tokens"], 9.0 * np.arange(1, many))


@pytest.mark.parametrize("kinds", [("step", "warning"), ("warning",), ("step", "validation", "none")])
def test_the_last_row_of_a_kind_is_found_however_it_is_written(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """Rows of steps are passed over; those that another program spelled differently, or that repeat a kind, are not."""
    odd = ['{"step":5,"kind":"warning","why":"first"}', '{ "kind": "validation", "step": 7, "why": "\\"warning\\""}']
    rows = [*map(step, range(1, 5)), odd[0], step(6), odd[1], *map(step, range(8, CHUNK // 100))]
    found = last_rows(write(tmp_path / "log", *rows), kinds)
    expected = {"step": CHUNK // 100 - 1, "warning": 5, "validation": 7}
    assert {kind: row["step"] for kind, row in found.items()} == {kind: expected[kind] for kind in kinds if kind in expected}

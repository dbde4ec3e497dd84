"""Rows of CSV: one that can't be read costs itself, and those after it are read."""

import gzip
from pathlib import Path

import pytest

from llamactl.corpus import csv_files, readers
from llamactl.corpus.unreadable import Unreadable


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz"])
@pytest.mark.parametrize("place", [0, 3, 20])
@pytest.mark.parametrize("bad", ["{long}{tab}1", '"{long}"{tab}1', "1{tab}{long}", '"a"b{tab}1', "a{tab}1{tab}2"])
def test_a_row_that_can_t_be_read_costs_itself(
    name: str, place: int, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_files, "LONGEST_CELL", 1000)
    tab = "\t" if ".tsv" in name else ","
    rows = [f"text {number}{tab}{number}" for number in range(20)]
    rows.insert(place, bad.format(long="x" * 1001, tab=tab))
    content = "\n".join([f"text{tab}n", *rows]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (part,) = readers.split_into_parts(tmp_path / name)
    found = list(readers.read_part(part, "text"))
    assert [row for row in found if isinstance(row, str)] == [f"text {number}" for number in range(20)]
    (lost,) = [row for row in found if not isinstance(row, str)]
    assert isinstance(lost, Unreadable)
    assert found.index(lost) == place
    assert abs(lost.lost - len(rows[place])) <= 1

"""Each kind of file: its documents, and what is said when it is not what its name promises."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamactl.corpus.readers import read_part, split_into_parts
from llamactl.corpus.splitting import LONGEST_TEXT, TooLong
from llamactl.errors import DataError


def read(path: Path, column: str = "text") -> list[str | None]:
    """All documents; the first that can't be read is raised."""
    found: list[str | None] = []
    for part in split_into_parts(path):
        for text in read_part(part, column):
            if isinstance(text, DataError):
                raise text
            assert not isinstance(text, TooLong)
            found.append(text)
    return found


def test_line_ends_and_blanks_are_kept_and_the_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n  three \r")
    assert read(path) == ["one\r\ntwo\n\n  three \r"]


def test_compressed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("naïve".encode()))
    with pa.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as stream:
        stream.write('{"text": "naïve"}\n'.encode())
    assert read(tmp_path / "a.txt.gz") == read(tmp_path / "b.jsonl.zst") == ["naïve"]


def test_a_line_without_end_is_not_swallowed_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * (2 * LONGEST_TEXT + 5))
    assert [len(text or "") for text in read(path)] == [LONGEST_TEXT, LONGEST_TEXT, 5]


def test_rows_without_text_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": null}\n\n{"body": "x", "n": 1}\n')
    pq.write_table(pa.table({"body": [None, "x"]}), tmp_path / "b.parquet")
    assert read(tmp_path / "a.jsonl", "body") == read(tmp_path / "b.parquet", "body") == [None, "x"]


def test_large_strings_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["x"], pa.large_string())}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"abc\xff", "not UTF-8"),
        ("a.txt.gz", b"not gzip", "can't be read"),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], "can't be read"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2, is not JSON"),
        ("a.jsonl", b'{"title": "x", "n": 1}\n', "It has: title, n"),
        ("a.jsonl", b'["x"]\n', "no 'text'"),
        ("a.jsonl", b'{"text": 5}\n', "not text but int"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("a.parquet", b"not parquet", "not a complete parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert says in str(caught.value)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(("column", "says"), [("text", "It has: body, n"), ("n", "not text but int64")])
def test_wrong_columns_are_named(tmp_path: Path, column: str, says: str) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.parquet", column)
    assert says in str(caught.value)


def test_a_cut_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [json.dumps(list(range(1000)))] * 9}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="complete parquet"):
        read(path)

"""What people feed to prepare: each row is an input and its documented outcome. Nothing is dropped in silence."""

import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamactl import cli
from llamactl.corpus import objects, readers
from llamactl.corpus.dataset import DatasetDir
from llamactl.errors import DataError
from llamactl.tokenizer.plain_bpe import END_OF_TEXT


def parquet(values: Any, name: str = "text", **options: Any) -> bytes:
    """A parquet file of one column."""
    file = io.BytesIO()
    pq.write_table(pa.table({name: values}), file, **options)
    return file.getvalue()


def lines(*rows: Any) -> bytes:
    """A .jsonl file of objects."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(content: bytes) -> bytes:
    """A .zst file."""
    packed: bytes = pa.compress(content, "zstd", asbytes=True)
    return packed


def flipped(content: bytes, place: int) -> bytes:
    """The same with one byte changed."""
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


class Row(NamedTuple):
    """A file, and what becomes of it beside two good ones."""

    name: str
    content: bytes
    code: int = 0
    written: int = 1  # documents that it adds
    skipped: dict[str, int] = {}  # noqa: RUF012
    says: str = ""
    options: str = ""


GOOD = parquet(["alpha", "beta"])
PACKED = gzip.compress(b"abc")
LONG = 1_000_000
ROWS = {
    "empty file": Row("x.txt", b"", written=0, skipped={"empty": 1}),
    "only newlines": Row("x.txt", b"\n\n\r\n", written=0, skipped={"empty": 1}),
    "only spaces of Unicode": Row("x.txt", "\u3000\u00a0\t".encode(), written=0, skipped={"empty": 1}),
    "byte order mark": Row("x.txt", b"\xef\xbb\xbfabc"),
    "byte order mark in jsonl": Row("x.jsonl", b"\xef\xbb\xbf" + lines({"text": "a"})),
    "UTF-16": Row("x.txt", "abc".encode("utf-16")),
    "UTF-32 in jsonl": Row("x.jsonl", '{"text": "a"}'.encode("utf-32")),
    "UTF-16 without a mark": Row("x.txt", ("abc" * 9).encode("utf-16-be"), 3, says="--encoding utf-16-be"),
    "bad byte at the start": Row("x.txt", b"\xffabc", 3, says="not UTF-8"),
    "bad byte in the middle": Row("x.txt", b"abc\x80abc", 3, says="not UTF-8"),
    "half a character at the end": Row("x.txt", "abcé".encode()[:-1], 3, says="not UTF-8"),
    "overlong encoding": Row("x.txt", b"a\xc0\xafb", 3, says="not UTF-8"),
    "encoded surrogate": Row("x.txt", b"a\xed\xa0\x80b", 3, says="not UTF-8"),
    "bad byte, allowed": Row("x.txt", b"abc\x80", 0, 0, {"unreadable": 1}, options="--max-bad-docs 1"),
    "NUL bytes": Row("x.txt", b"a\0b\0c"),
    "carriage returns": Row("x.jsonl", b'{"text": "a"}\r\n{"text": "b"}\r\n', written=2),
    "line separators of Unicode": Row("x.jsonl", '{"text": "a\u2028b\u0085c"}\n'.encode()),
    "no newline at the end": Row("x.jsonl", b'{"text": "a"}'),
    "blank lines": Row("x.jsonl", b'\n{"text": "a"}\n\n  \n'),
    "empty jsonl": Row("x.jsonl", b"", written=0),
    "cut last line": Row("x.jsonl", b'{"text": "a"}\n{"text": "b', 3, says="line 2, is not JSON"),
    "cut last line, allowed": Row("x.jsonl", b'{"text": "a"}\n{"t', 0, 1, {"unreadable": 1}, options="--max-bad-docs 1"),
    "two bad lines, one allowed": Row("x.jsonl", b"{\n}{\n", 3, says="line 2, is not JSON", options="--max-bad-docs 1"),
    "garbage after the brace": Row("x.jsonl", b'{"text": "a"} x\n', 3, says="line 1, is not JSON"),
    "the same key twice": Row("x.jsonl", b'{"text": "a", "text": "b"}\n'),
    "NaN in JSON": Row("x.jsonl", b'{"text": "a", "n": NaN, "m": -Infinity}\n'),
    "a number of 5,000 digits": Row("x.jsonl", b'{"text": "a", "n": ' + b"9" * 5_000 + b"}\n", 3, says="is not JSON"),
    "deep nesting": Row("x.jsonl", b'{"text": ' + b"[" * 200_000 + b"\n", 3, says="is not JSON"),
    "a list": Row("x.jsonl", b'["a"]\n', 3, says="no 'text'"),
    "a string": Row("x.jsonl", b'"text"\n', 3, says="no 'text'"),
    "a bare null": Row("x.jsonl", b"null\n", 3, says="no 'text'"),
    "no such key": Row("x.jsonl", lines({"body": "a", "title": "b", "id": 1}), 3, says="It has: body, title, id"),
    "the only key of text": Row("x.jsonl", lines({"body": "a", "id": 1})),
    "null": Row("x.jsonl", lines({"text": None}, {"text": "a"}), skipped={"empty": 1}),
    "a number as text": Row("x.jsonl", lines({"text": 5}), 3, says="not text but int"),
    "half a character in JSON": Row("x.jsonl", b'{"text": "a\\ud800b"}\n', 3, says="half a character"),
    "half a character, allowed": Row("x.jsonl", b'{"text": "\\ud800"}\n', 0, 0, {"unreadable": 1}, options="--max-bad-docs 9"),
    "a whole pair in JSON": Row("x.jsonl", b'{"text": "\\ud83e\\udd99"}\n'),
    "a line that is too long": Row("x.jsonl", lines({"text": "a" * 4000}, {"text": "b"}), 3, says="line 1, is longer"),
    "null column": Row("x.parquet", parquet(pa.array([None, None], pa.string())), 0, 0, {"empty": 2}),
    "no rows": Row("x.parquet", parquet(pa.array([], pa.string())), written=0),
    "column of numbers": Row("x.parquet", parquet([1, 2]), 3, says="not text but int64"),
    "column of bytes": Row("x.parquet", parquet([b"a"]), 3, says="not text but binary"),
    "column of lists": Row("x.parquet", parquet([["a", "b"], ["c"]]), written=2),
    "column of lists of numbers": Row("x.parquet", parquet([[1]]), 3, says="not text but list"),
    "column of large strings": Row("x.parquet", parquet(pa.array(["a"], pa.large_string()))),
    "column of codes": Row("x.parquet", parquet(pa.array(["a", "b", "a"]).dictionary_encode()), written=3),
    "the only column of text": Row("x.parquet", parquet(["a"], "body")),
    "wrong column": Row("x.parquet", parquet(["a"], "body"), 3, says="no column 'text'", options="--text-column text"),
    "cut parquet": Row("x.parquet", GOOD[:-9], 3, says="not a complete parquet file"),
    "parquet of garbage": Row("x.parquet", b"PAR1 garbage PAR1", 3, says="not a complete parquet file"),
    "damaged page": Row("x.parquet", flipped(parquet(["a" * 500], write_page_checksum=True), 60), 3, says="x.parquet"),
    "gzip": Row("x.txt.gz", gzip.compress(b"abc")),
    "two members of gzip": Row("x.jsonl.gz", 2 * gzip.compress(lines({"text": "a"})), written=2),
    "cut gzip": Row("x.txt.gz", gzip.compress(os.urandom(9_999).hex().encode())[:-50], 3, says="can't be read"),
    "gzip with a wrong sum": Row("x.txt.gz", flipped(PACKED, len(PACKED) - 8), 3, says="can't be read"),
    "garbage as gzip": Row("x.txt.gz", b"not packed at all", 3, says="can't be read"),
    "zstd": Row("x.txt.zst", zstd(b"abc")),
    "cut zstd": Row("x.txt.zst", zstd(os.urandom(9_999).hex().encode())[:-50], 3, says="can't be read"),
    "gzip without its name": Row("x.txt", gzip.compress(b"abc"), 3, says="not UTF-8"),
    "a bomb of spaces": Row("x.txt.gz", gzip.compress(b" " * 30_000_000), 0, 0, {"empty": 34}),
    "a long line": Row("x.txt", b"a b " * 600_000, written=6),
    "a long line in a column": Row("x.parquet", parquet(["a b " * 600_000]), written=6),
    "a long line, refused": Row("x.parquet", parquet(["ab " * 600_000]), 0, 0, {"too long": 1}, options="--max-doc-bytes 1M"),
    "a million carets": Row("x.txt", b"^" * LONG, written=2),
    "a million letters": Row("x.txt", b"x" * LONG, written=2),
    "a million ideographs": Row("x.txt", "字".encode() * LONG, written=2),
    "control tokens as text": Row("x.txt", f"a {END_OF_TEXT} b".encode()),
    "nothing but control tokens": Row("x.txt", END_OF_TEXT.encode() * 3),
    "the same document again": Row("x.txt", b"first good document"),
    "a name with an escape": Row("x\x1b[2J\n.txt", b"abc\xff", 3, says="\\x1b[2J"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good documents."""
    here = tmp_path / "input"
    here.mkdir()
    for name in ("first", "second"):
        (here / f"{name}.txt").write_text(f"{name} good document")
    return here


@pytest.fixture
def prepare(
    home: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Type the command in this process: its exit code, and what it said."""

    def prepare(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["llamactl", "prepare", "--tokenizer", str(small_tokenizer), "--name", "made", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return int(ended.value.code or 0), told

    return prepare


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("encoder", ["tiktoken", pytest.param("fastokens", marks=pytest.mark.slow)])
def test_each_input_has_its_outcome(
    case: str, encoder: str, folder: Path, prepare: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[case]
    if case == "a line that is too long":
        monkeypatch.setattr(objects, "LONGEST_ROW", 1024)
    (folder / row.name).write_bytes(row.content)
    code, told = prepare(str(folder), "--encoder", encoder, *row.options.split())
    assert code == row.code, told
    if code:
        error = told[told.index("✗") :]
        assert row.says in error
        assert error.count("\n") <= 3
        assert not (DatasetDir.from_name("made").info_path).exists()
        return
    made = DatasetDir.from_name("made").open()
    written = made.info.total("train", "documents") + made.info.total("val", "documents")
    assert (written, made.info.skipped) == (2 + row.written, row.skipped)
    assert made.info.documents_read == written + sum(row.skipped.values())
    assert sum((shard == made.tokenizer.end).sum() for shard in (*made.train, *made.val)) == written
    assert "first good document" in "".join(made.tokenizer.decode(shard) for shard in (*made.train, *made.val))


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "nothing", "unknown ending"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path, prepare: Callable[..., tuple[int, str]]) -> None:
    path = tmp_path / ("x.txt" if kind != "unknown ending" else "x.docx")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to(tmp_path / "gone.txt")
        case "unknown ending":
            path.write_text("abc")
    code, told = prepare(str(path))
    assert code == 3
    assert path.name in told


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    path = folder / "first.txt"
    (part,) = readers.split_into_parts(path)
    rows = readers.read_part(part, "text")
    assert next(rows) == "first good document"
    path.write_text("another document")
    with pytest.raises(DataError, match=r"first\.txt has changed"):
        next(rows)


def test_a_file_that_vanishes_is_named(folder: Path) -> None:
    (part,) = readers.split_into_parts(folder / "first.txt")
    (folder / "first.txt").unlink()
    with pytest.raises(DataError, match=r"first\.txt can't be read"):
        list(readers.read_part(part, "text"))

"""Text as people have it: which documents it becomes, how much is held out, in which encodings, formats and folders.

Each table holds the members of one kind. What makes the kind impossible is named at its head.
"""

import bz2
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from llamactl import cli
from llamactl.corpus import parts as corpus_parts
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.sources import Reading, name_source, open_source

WORDS = ["the", "of", "and", "people", "state", "union", "congress", "year", "nation", "law", "war", "peace", "great"]
Prepare = Callable[..., tuple[int, str]]


@pytest.fixture
def prepare(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Type the command in this process: its exit code, and what it said."""

    def prepare(*words: object) -> tuple[int, str]:
        typed = ["llamactl", "prepare", "--tokenizer", "bytes", "--name", "made", *map(str, words)]
        monkeypatch.setattr(sys, "argv", typed)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return int(ended.value.code or 0), told

    return prepare


def made() -> Dataset:
    return DatasetDir.from_name("made").open()


def texts(dataset: Dataset) -> dict[str, list[str]]:
    """The documents of each split."""
    found: dict[str, list[str]] = {}
    for split, shards in (("train", dataset.train), ("val", dataset.val)):
        found[split] = []
        for shard in shards:
            ends = np.flatnonzero(shard == dataset.tokenizer.end)
            found[split] += [dataset.tokenizer.decode(piece) for piece in np.split(shard, ends + 1)[:-1]]
    return found


def share(dataset: Dataset) -> float:
    train, val = dataset.info.total("train", "tokens"), dataset.info.total("val", "tokens")
    return val / (train + val)


def sentences(count: int, seed: int = 0) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(4, 20))).capitalize() + f" {n}." for n in range(count)]


def ideographs(count: int) -> list[str]:
    chosen = random.Random(1)
    return ["".join(chr(chosen.randint(0x4E00, 0x4FFF)) for _ in range(chosen.randint(5, 40))) for _ in range(count)]


def rows(found: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in found)


# Whatever the documents are, the share of tokens that is held out is near the one asked for: `corpus.holdout` decides it.
SHAPES = {
    "an item a line": ("x.txt", "\n".join(sentences(1000))),
    "an item a line in Chinese": ("x.txt", "\n".join(ideographs(600))),
    "names, a line each": ("x.txt", "\n".join("".join(random.Random(n).choices("abcdefgh", k=6)) for n in range(2000))),
    "one book": ("x.txt", "\n\n".join(" ".join(sentences(8, n)) for n in range(300))),
    "one line": ("x.txt", " ".join(sentences(2000))),
    "Chinese in one line": ("x.txt", "".join(ideographs(2000))),
    "no word boundary at all": ("x.txt", "ACGT" * 20_000),
    "wrapped lines": ("x.txt", "\n".join(" ".join(WORDS[n % 9 :] + WORDS[: n % 5]) for n in range(2000))),
    "three huge and many tiny": ("x.jsonl", rows([" ".join(sentences(4000, n)) for n in range(3)] + sentences(1000))),
    "a huge one first": ("x.jsonl", rows([" ".join(sentences(9000)), *sentences(300)])),
    "thirty alike": ("x.jsonl", rows([" ".join(sentences(60, n)) for n in range(30)])),
    "two documents": ("x.jsonl", rows([" ".join(sentences(600, n)) for n in range(2)])),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("asked", [0.1, 0.02])
def test_the_share_is_near_what_was_asked_for(shape: str, asked: float, tmp_path: Path, prepare: Prepare) -> None:
    name, content = SHAPES[shape]
    (tmp_path / name).write_text(content, "utf-8")
    code, told = prepare(tmp_path / name, "--val-fraction", asked)
    assert code == 0, told
    dataset = made()
    assert 0.5 * asked < share(dataset) < 1.7 * asked, told
    found = texts(dataset)
    assert not set(found["train"]) & set(found["val"]), "no text is in both"


def test_copies_are_in_one_split(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.txt").write_text("\n".join(random.Random(0).choices([s.strip(".") for s in sentences(60)], k=5000)))
    assert prepare(tmp_path / "x.txt", "--split", "lines")[0] == 0
    found = texts(made())
    assert found["val"]
    assert not set(found["train"]) & set(found["val"])


def test_one_line_again_and_again_is_cut(tmp_path: Path, prepare: Prepare) -> None:
    """There is nothing else to hold out, and its two halves are different texts."""
    (tmp_path / "x.txt").write_text("the same line once more\n" * 2000)
    assert prepare(tmp_path / "x.txt")[0] == 0
    found = texts(made())
    assert set(found["train"]) == {"the same line once "} or set(found["train"]) == {"the same line once mo"}
    assert not set(found["train"]) & set(found["val"])


def test_too_little_to_hold_out_is_said(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.txt").write_text("hello world")
    code, told = prepare(tmp_path / "x.txt")
    assert code == 3
    assert "more than one document" in told


# Where a document ends is one rule, in `corpus.splitting`; the recipe holds it.
BOOK = "One a.\nOne b.\n\nTwo.\n---\nTwo more.\n\n\nThree."


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("lines", ["One a.", "One b.", "Two.", "---", "Two more.", "Three."]),
        ("paragraphs", ["One a.\nOne b.", "Two.\n---\nTwo more.", "\nThree."]),
        ("files", [BOOK]),
        ("---", ["One a.\nOne b.\n\nTwo.\n", "\nTwo more.\n\n\nThree."]),
        (r"\n\n", ["One a.\nOne b.", "Two.\n---\nTwo more.", "\nThree."]),
        (r"re:\n-+\n|\n{3}", ["One a.\nOne b.\n\nTwo.", "Two more.", "Three."]),
        ("re:(a+)+\\.", ["One ", "\nOne b.\n\nTwo.\n---\nTwo more.\n\n\nThree."]),
    ],
)
def test_each_rule(rule: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(BOOK)
    source = open_source([str(tmp_path / "x.txt")], Reading(split=rule))
    assert list(source.documents(0, "text")) == found
    assert source.split == rule


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("\n".join(sentences(50)), "lines"),
        ("\n\n".join(sentences(50)), "chunks"),
        ("\n<|endoftext|>\n".join(sentences(50)), r"re:(?m)^<\|endoftext\|>[ \t\r]*$"),
        ("\n".join(["a line of a page that was wrapped where the page ended as pages do it"] * 50), "chunks"),
        (" ".join(sentences(50)), "files"),
    ],
)
def test_auto_says_what_it_chose(content: str, rule: str, tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.txt").write_text(content)
    code, told = prepare(tmp_path / "x.txt")
    assert code == 0, told
    assert made().info.recipe.split == rule
    assert (f"documents: {rule}" in told) == (rule != "files")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--split lnies", "Did you mean 'lines'"),
        ("--split re:(?=x)", "RE2"),
        ("--split re:[", "not a regular expression"),
        ("--split re:x*", "matches empty text"),
        ("--split <|nowhere|>", "in none of the text files"),
        ("--encoding utf-9", "Did you mean 'utf_8'"),
        ("--encoding rot13", "not an encoding"),
        ("--max-bad-docs 99999999999999999999", "max-bad-docs"),
        ("--max-doc-bytes 300M", "at most 256,000,000"),
        ("--max-tokens 1e400", "not a count"),
        ("--workers 99999999999", "workers"),
        ("--val-fraction nan", "val-fraction"),
        ("--tokenizer bpe:" + "9" * 5000, "not a tokenizer"),
        ("--piece 1/" + "9" * 5000, "--piece takes I/N"),
        ("--piece=1/2 --finish", "exclude each other"),
    ],
)
def test_options_that_make_no_sense(options: str, says: str, tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.txt").write_text("\n".join(sentences(50)))
    code, told = prepare(tmp_path / "x.txt", *options.split(" ", 1))
    assert code == 2
    assert says in told


@pytest.mark.parametrize(
    "option",
    ["--tokenizer", "--text-column", "--split", "--encoding", "--name", "--weights", "--piece", "--max-tokens", "--encoder"],
)
@pytest.mark.parametrize("text", ["\udcff", "d\udcff/t.json", "\0", "9" * 5000, "-1", "nan", "1e999999999"])
def test_no_text_of_an_option_is_our_bug(option: str, text: str, tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.jsonl").write_text(rows(sentences(50)))
    (tmp_path / "x.txt").write_text("\n".join(sentences(50)))
    code, told = prepare(tmp_path / "x.jsonl", tmp_path / "x.txt", f"{option}={text}")
    assert code in (0, 2, 3), told


def test_a_tokenizer_that_is_not_utf_8_is_named(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.txt").write_text("\n".join(sentences(50)))
    (tmp_path / "t.json").write_bytes(b'{"model": "\xff"}')
    code, told = prepare(tmp_path / "x.txt", "--tokenizer", tmp_path / "t.json")
    assert code == 3
    assert "t.json is damaged" in told


@pytest.mark.parametrize("words", [["none.parquet"], ["none.parquet", "x.txt", "--weights", "1,1"], ["x.txt", "sample"]])
def test_what_gives_no_pieces_is_refused(
    words: list[str], tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("\n".join(sentences(50)))
    pq.ParquetWriter("none.parquet", pa.schema({"text": pa.string()})).close()
    code, told = prepare(*words)
    assert code == (2 if "sample" in words else 3)
    assert ("--weights 1,1" if "sample" in words else "There is no text in none.parquet") in told
    # Beside files with text it does not matter.
    assert prepare("none.parquet", "x.txt")[0] == 0


# A bad byte costs its document and no other, and what is lost is counted in bytes: `corpus.streams.Decoded` marks it.
def test_a_bad_byte_costs_its_document(tmp_path: Path, prepare: Prepare) -> None:
    lines = [sentence.encode() for sentence in sentences(1000)]
    lines[500] = b"caf\xe9 au lait"
    for name in ("x.txt", "x.jsonl", "x.csv"):
        content = b"\n".join(b'{"text": "%s"}' % line if name == "x.jsonl" else line for line in lines)
        (tmp_path / name).write_bytes(b"text\n" + content if name == "x.csv" else content)
        code, told = prepare(tmp_path / name)
        assert code == 3
        assert "cp1252 (latin-1)" in told
        assert "--encoding cp1252" in told
        code, told = prepare(tmp_path / name, "--max-bad-docs", 1, "--name", name.replace(".", "-"))
        assert code == 0, told
        info = DatasetDir.from_name(name.replace(".", "-")).info()
        assert info.skipped == {"unreadable": 1}
        assert info.skipped_bytes["unreadable"] == len(lines[500]) + (12 if name == "x.jsonl" else 0)
        assert "1 skipped (unreadable, " in told
        assert info.total("train", "text_bytes") + info.total("val", "text_bytes") == sum(map(len, lines)) - len(lines[500])


@pytest.mark.parametrize(
    "encoding", ["latin-1", "koi8-r", "gb18030", "shift_jis", "utf-16", "utf-16-be", "utf-32", "utf-8-sig"]
)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.csv"])
def test_encodings(encoding: str, name: str, tmp_path: Path, prepare: Prepare) -> None:
    letters = {"koi8-r": "слово ", "gb18030": "今天，", "shift_jis": "公園に"}.get(encoding, "café ")
    lines = [f"{letters}{number}" for number in range(300)]
    content = {"x.txt": "\n".join(lines), "x.jsonl": "\n".join(f'{{"text": "{line}"}}' for line in lines)}
    (tmp_path / name).write_text(content.get(name, "text\n" + "\n".join(lines)), encoding)
    code, told = prepare(tmp_path / name, *([] if "utf" in encoding and encoding != "utf-16-be" else ["--encoding", encoding]))
    assert code == 0, told
    found = texts(made())
    assert sorted(found["train"] + found["val"]) == sorted(lines)


# A packed file is bounded by what it becomes: `corpus.streams.Allowance`, whatever the format.
def packed(name: str, path: Path) -> None:
    value = "x" * (4 << 20)
    if name.endswith(".parquet"):
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([value]))
        table = pa.table({"text": [value] * 20 if "plain" in name else column})
        pq.write_table(table, path, use_dictionary="plain" not in name, compression="zstd")
        return
    if path.suffix in (".feather", ".arrow"):
        table = pa.table({"text": [value] * 24})
        codes = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([value * 24]))})
        options = pa.ipc.IpcWriteOptions(compression="zstd" if "zstd" in name else "lz4")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, codes.schema, options=options) as stream:
            stream.write_table(codes)
        if path.suffix == ".feather":
            pyarrow.feather.write_feather(table, path, compression="zstd" if "zstd" in name else "lz4")
        return
    head, block = (b'[{"text":"' if "json" in name else b"text\n"), value.encode()
    opened: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix)
    with opened(path, "wb") if opened else pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(head)
        for _ in range(24):
            file.write(block)


@pytest.mark.parametrize(
    "name",
    [
        "a.parquet",
        "b.txt.gz",
        "c.jsonl.zst",
        "d.csv.xz",
        "e.json.bz2",
        "f.TXT.ZST",
        "plain.parquet",
        "zstd.feather",
        "lz4.feather",
        "zstd.arrow",
        "lz4.arrow",
    ],
)
def test_bombs_are_refused(name: str, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamactl.corpus.streams.FREE_UNPACKED", 8 << 20)
    packed(name, tmp_path / name)
    code, told = prepare(tmp_path / name)
    assert code == 3
    assert "200 times its size" in told or "longer than 16 MiB" in told


def arrow_stream(compression: str, path: Path) -> None:
    """Items in several batches, with a dictionary and with batches that packing would not make smaller."""
    table = pa.table({"text": pa.array(ITEMS).dictionary_encode(), "noise": [random.Random(0).randbytes(99)] * len(ITEMS)})
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream,
    ):
        stream.write_table(table, max_chunksize=7)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_packed_arrow_files_are_read(compression: str, tmp_path: Path, prepare: Prepare) -> None:
    arrow_stream(compression, tmp_path / "x.arrow")
    code, told = prepare(tmp_path / "x.arrow")
    assert code == 0, told
    found = texts(made())
    assert sorted(found["train"] + found["val"]) == sorted(ITEMS)


@pytest.mark.parametrize("kind", ["feather", "arrow"])
def test_damaged_arrow_files_are_refused(kind: str, tmp_path: Path, prepare: Prepare) -> None:
    """Any byte of what says where things are: the file is read, or refused with its name."""
    path, draw = tmp_path / f"x.{kind}", random.Random(16)
    arrow_stream("zstd", path) if kind == "arrow" else pyarrow.feather.write_feather(TABLE, path)
    content = path.read_bytes()
    for number in range(60):
        place = draw.randrange(min(len(content), 1_000))
        damaged = bytearray(content)
        damaged[place : place + 4] = draw.choice([b"\xff" * 4, b"\x00" * 4, b"\xff\xff\xff\x7f", draw.randbytes(4)])
        path.write_bytes(damaged)
        code, told = prepare(path, "--name", f"d{number}")
        assert code in (0, 3), told
        assert code == 0 or "x." in told


def test_a_line_without_end_is_refused(tmp_path: Path, prepare: Prepare) -> None:
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(10 << 30)
    code, told = prepare(tmp_path / "x.jsonl", "--max-bad-docs", 9)
    assert code == 3
    assert "x.jsonl is not a file of lines" in told


# Which files are read, and which are left out and said to be: `corpus.walk`.
def test_a_tree_of_odd_files(tmp_path: Path, prepare: Prepare) -> None:
    tree, other = tmp_path / "my tree ü", tmp_path / "other"
    for folder in (tree / ".ipynb_checkpoints", tree / "__MACOSX", tree / "sub", other):
        folder.mkdir(parents=True)
    for number in range(30):
        (tree / f"{number}.txt").write_text(f"{number} " + " ".join(sentences(9)))
        (other / f"{number}.txt").write_text(f"other {number} " + " ".join(sentences(9)))
    (tree / "linked").symlink_to(other)
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "again.txt").symlink_to(tree / "0.txt")
    (tree / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tree / "pipe.txt")
    for name in (
        ".ipynb_checkpoints/a.txt",
        "__MACOSX/b.txt",
        "._c.txt",
        ".d.txt",
        "e.txt~",
        "Thumbs.db",
        "f.pdf",
        "README.md",
    ):
        (tree / name).write_text("not to be read")
    (tree / "UP.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "capitals"}\n'))
    code, told = prepare(tree)
    assert code == 0, told
    assert made().info.documents_read == 61
    assert not made().info.skipped
    for said in ("6 × hidden or left by a system", "1 × no regular file", "1 × a link to nothing", ".pdf: a PDF", "1 × README"):
        assert said in told
    assert name_source([str(tree)]) == "my-tree-u"


@pytest.mark.parametrize("source", [".", "**/*.jsonl", "d*"])
def test_what_llamactl_made_is_no_text(source: str, home: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    # The text may be among datasets, and in the folder of a model, whose files are no rows.
    folder = home / "data" if source == "." else home
    for path in ("data/own/mine.jsonl", "data/a/config.toml", "data/a/environment.json", "data/a/samples.jsonl",
                 "data/model/config.json", "data/model/tokenizer.json", "data/half/.pieces/lock", "data/half/x.jsonl",
                 "config.json", "tokenizer.json"):  # fmt: skip
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(rows(sentences(40)))
    monkeypatch.chdir(folder)
    assert prepare(source)[0] == 0
    first = made().info
    assert first.inputs
    assert [file.name for file in first.inputs.files] == ["mine.jsonl"]
    # Now there is a finished dataset, too.
    code, told = prepare(source)
    assert code == 0, told
    assert "× a dataset, run or model" in told
    assert made().info == first


def test_an_empty_source_is_not_the_current_folder(tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("\n".join(sentences(40)))
    for words in ([""], ["mine.txt", ""], ["sample", "", "--weights", "1,1"]):
        code, told = prepare(*words)
        assert code == 2
        assert "A source is empty" in told


@pytest.mark.parametrize(
    ("name", "becomes"),
    [("my data.txt", "my-data"), ("Bücher", "Bucher"), ("😀.txt", "text"), (".hidden.txt", "hidden"), ("x" * 300, "x" * 80),
     ("-rf", "rf"), ("データ", "text"), ("x.jsonl.gz", "x"), ("..", "text")],
)  # fmt: skip
def test_any_source_has_a_valid_name(name: str, becomes: str) -> None:
    assert name_source([name]) == becomes
    assert DatasetDir.from_name(becomes)


@pytest.mark.parametrize(("name", "better"), [("my data", "my-data"), ("ü", "u"), ("../x", "x"), ("y" * 300, "y" * 80)])
def test_a_bad_name_leads_to_a_valid_one(name: str, better: str, tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "x.txt").write_text("\n".join(sentences(50)))
    code, told = prepare(tmp_path / "x.txt", "--name", name)
    assert code == 3
    assert f"This would be one: {better}\n" in told


def test_names_that_are_not_utf_8(tmp_path: Path, prepare: Prepare) -> None:
    folder = os.fsencode(tmp_path) + b"/d\xe9"
    os.mkdir(folder)  # noqa: PTH102  # the name is no text
    pq.write_table(pa.table({"text": sentences(50)}), tmp_path / "x")
    (tmp_path / "x").rename(Path(os.fsdecode(folder + b"/\xff.parquet")))
    Path(os.fsdecode(folder + b"/b\xe9.txt")).write_bytes(b"abc \xe9")
    code, told = prepare(os.fsdecode(folder))
    assert code == 3
    assert "b\\udce9.txt is not UTF-8" in told
    code, told = prepare(os.fsdecode(folder), "--max-bad-docs", 1)
    assert code == 0, told
    assert made().info.recipe.source.endswith("d\\xe9")


@pytest.mark.parametrize(
    "name", ["/dev/zero", "/dev/null", "pipe.txt", "gone.txt", "empty", "a\0b", "~nobody-here/x", "x" * 300]
)
def test_what_is_no_source_is_named(name: str, tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.txt")
    Path("gone.txt").symlink_to("nowhere")
    Path("empty").mkdir()
    assert prepare(name)[0] == 3


@pytest.mark.parametrize(
    "surroundings", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_a_locale_without_letters(surroundings: dict[str, str], tmp_path: Path) -> None:
    """A process of its own, as Python asks for the locale once; `cli.main` makes its streams take any text."""
    folder = tmp_path / "Bücher 😀"
    folder.mkdir()
    (folder / "x.txt").write_text("\n".join(sentences(50)), "utf-8")
    words = [sys.executable, "-m", "llamactl", "prepare", str(folder), "--tokenizer", "bytes", "--json"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **surroundings}, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert "recipe" in json.loads(done.stdout.replace(b"\\U", b"U").decode("utf-8" if "LC_ALL" in surroundings else "latin-1"))


def test_tilde_in_the_home(tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("LLAMACTL_HOME", "~/llamas")
    (tmp_path / "x.txt").write_text("\n".join(sentences(50)))
    assert prepare(tmp_path / "x.txt")[0] == 0
    assert (tmp_path / "me/llamas/data/made/dataset.json").exists()


# Formats: by name through `corpus.kinds.KINDS`, their columns through `corpus.columns`.
ITEMS = sentences(60)
TALK = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": item}] for item in ITEMS]
SPOKEN = [f"user: hi\n\nassistant: {item}" for item in ITEMS]
TABLE = pa.table({"text": ITEMS, "n": range(60)})
FORMATS: dict[str, tuple[Any, list[str]]] = {
    "x.ndjson": (rows(ITEMS), ITEMS),
    "X.JSONL.GZ": (gzip.compress(rows(ITEMS).encode()), ITEMS),
    "x.jsonl.xz": (lzma.compress(rows(ITEMS).encode()), ITEMS),
    "x.jsonl.bz2": (bz2.compress(rows(ITEMS).encode()), ITEMS),
    "array.json": (json.dumps([{"text": item} for item in ITEMS], indent=1), ITEMS),
    "strings.json": (json.dumps(ITEMS), ITEMS),
    "object.json": (json.dumps({"version": "1", "data": [{"text": item} for item in ITEMS]}), ITEMS),
    "columns.json": (json.dumps({"text": ITEMS}), ITEMS),
    "lines.json": (rows(ITEMS), ITEMS),
    "x.csv": ("n,text\n" + "".join(f'{n},"{item}, ""so"""\n' for n, item in enumerate(ITEMS)), [f'{i}, "so"' for i in ITEMS]),
    "semicolons.csv": ("n;text\n" + "".join(f"{n};{item}\n" for n, item in enumerate(ITEMS)), ITEMS),
    "x.tsv.gz": (gzip.compress(("n\ttext\n" + "".join(f"{n}\t{item}\n" for n, item in enumerate(ITEMS))).encode()), ITEMS),
    "other.csv": ("n,body\n" + "".join(f"{n},{item}\n" for n, item in enumerate(ITEMS)), ITEMS),
    "plain.parquet": (TABLE, ITEMS),
    "large.parquet": (pa.table({"text": pa.array(ITEMS, pa.large_string())}), ITEMS),
    "view.parquet": (pa.table({"text": pa.array(ITEMS, pa.string_view())}), ITEMS),
    "codes.parquet": (pa.table({"text": pa.array(ITEMS).dictionary_encode()}), ITEMS),
    "lists.parquet": (pa.table({"text": [[item, "b"] for item in ITEMS]}), [f"{item}\n\nb" for item in ITEMS]),
    "talk.parquet": (pa.table({"id": range(60), "messages": TALK}), SPOKEN),
    "talk.jsonl": ("".join(json.dumps({"messages": talk}) + "\n" for talk in TALK), SPOKEN),
    "content.parquet": (pa.table({"content": ITEMS, "n": range(60)}), ITEMS),
    "x.feather": (TABLE, ITEMS),
    "x.arrow": (TABLE, ITEMS),
}


def write(path: Path, content: Any) -> None:
    if path.suffix == ".parquet":
        pq.write_table(content, path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(content, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as stream:
            stream.write_table(content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_people_have(name: str, tmp_path: Path, prepare: Prepare) -> None:
    content, expected = FORMATS[name]
    write(tmp_path / name, content)
    code, told = prepare(tmp_path / name)
    assert code == 0, told
    found = texts(made())
    assert sorted(found["train"] + found["val"]) == sorted(expected)


def test_folders_of_save_to_disk(tmp_path: Path, prepare: Prepare) -> None:
    import datasets

    whole = datasets.Dataset.from_dict({"text": ITEMS})
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(str(tmp_path / "two"))
    for name in ("one", "two"):
        code, told = prepare(tmp_path / name, "--name", name)
        assert code == 0, told
        assert DatasetDir.from_name(name).info().documents_read == 60
    assert "'train' is taken; left out: test" in told


def test_a_shard_without_any_text_is_empty(tmp_path: Path, prepare: Prepare) -> None:
    pq.write_table(pa.table({"text": pa.nulls(5)}), tmp_path / "0.parquet")
    pq.write_table(TABLE, tmp_path / "1.parquet")
    assert prepare(tmp_path)[0] == 0
    assert made().info.skipped == {"empty": 5}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.pdf", b"%PDF-1.4", "pdftotext"),
        ("x", b"%PDF-1.4", "pdftotext"),
        ("x.txt", b"%PDF-1.4" * 99, "a PDF"),
        ("x.docx", b"PK\3\4", "pandoc"),
        ("x.zip", b"PK\3\4", "unzip"),
        ("x.tar.gz", b"\x1f\x8b", "tar xf"),
        ("x.tgz", b"\x1f\x8b", "tar xf"),
        ("x.epub", b"PK\3\4", "pandoc"),
        ("x.html", b"<html>", "pandoc"),
        ("x.db", b"SQLite format 3\0", "sqlite3"),
        ("x.npz", b"PK\3\4", "NumPy"),
        ("x.pkl", b"\x80\x04", "pickle"),
        ("x.gz", gzip.compress(b"abc", mtime=0), "x.txt.gz"),
        ("x.txt", gzip.compress(b"abc", mtime=0), "x.txt.gz"),
        ("x", bytes(range(256)) * 99, "Neither its name nor its first bytes"),
        ("x.json", b'{"a": [{"b": 1}], "c": [{"b": 1}]}', "several lists"),
        ("x.json", b'[{"text": "a"}, {"te', "is not JSON"),
        ("x.csv", b'text\n"never ends\n', "can't be read"),
        ("x.csv", b"text,n\na,b,c\n", "3 fields"),
        ("struct.parquet", pa.table({"text": [{"en": "a", "de": "b"}]}), "Its fields are: en, de"),
        ("binary.parquet", pa.table({"text": [b"a"], "other": ["b"]}), "--text-column other"),
        ("two.parquet", pa.table({"title": ["a"], "content": ["b"]}), "--text-column content"),
        ("x.arrow", pa.table({"title": ["a"], "content": ["b"]}), "--text-column content"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_by_what_they_are(
    name: str, content: Any, says: str, tmp_path: Path, prepare: Prepare
) -> None:
    write(tmp_path / name, content)
    code, told = prepare(tmp_path / name)
    assert code == 3
    assert says in told


def test_many_small_files_are_planned_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of parts are asked for once or a few times each, not once for each neighbour."""
    from llamactl.corpus import sources

    class Counting(corpus_parts.Part):
        asked = 0

        def __getattribute__(self, name: str) -> Any:
            if name == "size":
                Counting.asked += 1
            return super().__getattribute__(name)

    parts = [Counting("text", f"{number}.txt", 100) for number in range(40_000)]
    source = sources._local("x", list(parts), "bytes", 0.1)
    assert len(source.parts) == 40_000
    assert Counting.asked < 6 * 40_000

"""How a source is planned: which files, in which order, in which pieces."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamactl.corpus.sources import Reading, Source, file_source, open_source, sample_source
from llamactl.corpus.splitting import TooLong
from llamactl.errors import DataError


def texts(source: Source, column: str = "text") -> list[str | None]:
    found = [text for piece in range(len(source.pieces)) for text in source.documents(piece, column)]
    return [text for text in found if not isinstance(text, DataError | TooLong)]


def test_the_sample_is_249_addresses() -> None:
    source = sample_source()
    found = texts(source)
    assert len(found) == 249
    assert all(found)
    assert 12_000_000 < sum(len(text.encode()) for text in found if text) == source.size
    assert (source.tokenizer, source.val_fraction) == ("bpe:4096", 0.05)


def test_folders_globs_and_files_give_the_same_documents(corpus: Path, documents: list[str]) -> None:
    for words in ([str(corpus)], [f"{corpus}/*.txt"], [str(path) for path in corpus.iterdir()]):
        assert texts(open_source(words)) == documents


def test_pieces_do_not_depend_on_the_order_of_names(corpus: Path) -> None:
    names = [str(path) for path in corpus.iterdir()]
    assert open_source(names).pieces == open_source(names[::-1]).pieces


def test_kinds_mix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"three"))
    pq.write_table(pa.table({"text": ["four", "five", "six"]}), tmp_path / "d.parquet", row_group_size=2)
    (tmp_path / "README.md").write_text("not text to train on")
    source = file_source([str(tmp_path)])
    assert texts(source) == ["one", "two", "three", "four", "five", "six"]


def test_a_book_in_one_file_is_cut_into_documents(tmp_path: Path) -> None:
    book = "".join(f"Paragraph {number}. {'word ' * 40}\n\n" for number in range(500))
    (tmp_path / "book.txt").write_text(book)
    found = texts(file_source([str(tmp_path / "book.txt")]))
    assert "".join(filter(None, found)) == book
    assert len(found) >= 18
    assert all(text and text.endswith("\n\n") for text in found)


def test_big_inputs_make_several_pieces(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text("x" * (1 << 20))
    assert [len(piece) for piece in file_source([str(tmp_path)]).pieces] == [2, 2, 2, 2]


def test_nothing_to_read_names_what_there_could_be(tmp_path: Path) -> None:
    for words in (["nosuch"], [str(tmp_path)], [f"{tmp_path}/*.txt"]):
        with pytest.raises(DataError, match="No files found") as caught:
            open_source(words)
        assert "llamactl prepare sample" in caught.value.fix


def test_source_code_is_text(tmp_path: Path) -> None:
    """In any folder below, beside prose; what a system or an editor left there is not."""
    for name in ("setup.py", "src/main.C", "src/deep/lib.rs", "paper.tex", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("src/__pycache__/main.pyc", "src/logo.png", "Makefile", ".hidden.py", "main.py~"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\1")
    assert texts(file_source([str(tmp_path)])) == ["notes.txt", "paper.tex", "setup.py", "src/deep/lib.rs", "src/main.C"]


def test_source_code_in_another_encoding_is_left_out(tmp_path: Path) -> None:
    """A comment in Latin-1, or a film that is called .ts, must not end the work; --encoding says what it is."""
    (tmp_path / "a.py").write_text("text")
    (tmp_path / "b.c").write_bytes(b"/* caf\xe9 */ int main;" * 9)
    (tmp_path / "film.ts").write_bytes(bytes(range(256)) * 99)
    for pattern in (tmp_path, f"{tmp_path}/*"):
        source = file_source([str(pattern)])
        assert texts(source) == ["text"]
        assert "left out: 1 × .c files that are not UTF-8, 1 × .ts files that are not UTF-8" in source.notes
    assert len(texts(file_source([str(tmp_path)], Reading(encoding="latin-1")))) == 2
    assert len(texts(file_source([str(tmp_path / "b.c")], Reading(encoding="latin-1")))) == 1


def test_a_corpus_beside_a_script_is_read(tmp_path: Path) -> None:
    """With the only column of text, however it is called; by a name that was typed; not what is no corpus at all."""
    (tmp_path / "loader.py").write_text("program")
    pq.write_table(pa.table({"content": ["row"], "id": [1]}), tmp_path / "part.parquet")
    assert texts(file_source([str(tmp_path)]), "content") == ["program", "row"]
    (tmp_path / "part.parquet").unlink()
    (tmp_path / "stories.json").write_text('[{"story": "once"}]')
    (tmp_path / "damaged.json").write_text("{ // settings")
    assert texts(file_source([str(tmp_path)])) == ["program"]
    assert texts(file_source([str(tmp_path / "loader.py"), str(tmp_path / "stories.json")]), "story") == ["program", "once"]


def test_what_a_pattern_names_is_read_beside_programs_too(tmp_path: Path) -> None:
    """Whether the shell or llamactl replaces it by the files; a table that is damaged is not left out in silence."""
    (tmp_path / "main.py").write_text("program")
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('[{"story": "once"}]')
    typed = ([f"{tmp_path}/*.json"], [f"{tmp_path}/a.json", f"{tmp_path}/b.json"])
    for names in typed:
        assert texts(file_source([f"{tmp_path}/main.py", *names]), "story") == ["once", "once", "program"]
    (tmp_path / "table.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(DataError, match=r"table\.arrow"):
        texts(file_source([str(tmp_path)]))


def test_a_program_is_not_cut_into_lines(tmp_path: Path) -> None:
    lines = "".join(f"call({number})\n" for number in range(3_000))
    (tmp_path / "main.lua").write_text(lines)
    found = texts(file_source([str(tmp_path)]))
    assert "".join(filter(None, found)) == lines
    assert len(found) < 30


def test_settings_beside_programs_are_no_text(tmp_path: Path) -> None:
    """A package.json would be refused for its many columns of text; a corpus beside a script is one."""
    (tmp_path / "main.js").write_text("program")
    (tmp_path / "package.json").write_text('{"name": "a", "version": "1", "license": "MIT"}')
    (tmp_path / "tsconfig.json").write_text('{"extends": "other"}')
    (tmp_path / "table.csv").write_text("a,b\nx,y\n")
    (tmp_path / "corpus.jsonl").write_text('{"text": "row", "id": 1}\n')
    source = file_source([str(tmp_path)])
    assert texts(source) == ["row", "program"]
    assert "left out: 3 × settings or data beside source code" in source.notes
    (tmp_path / "main.js").unlink()
    with pytest.raises(DataError, match="no column 'text'"):
        file_source([str(tmp_path / "package.json")])


def test_a_folder_without_a_known_kind_gives_what_is_text(tmp_path: Path) -> None:
    """Mail has numbers for names, logs an ending of their own; a picture is no text, and one of a kind speaks for all."""
    for name in ("1", "2", "a.log", "b.log", "LICENSE"):
        (tmp_path / name).write_text(f"text of {name}")
    for name in ("c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff" + bytes(range(256)))
    source = file_source([str(tmp_path)])
    assert texts(source) == ["text of 1", "text of 2", "text of a.log", "text of b.log"]
    assert "text, by the first bytes: 2 × .log files, 2 × names without an ending" in source.notes
    assert "left out: 2 × .jpg files, 1 × README or LICENSE" in source.notes
    (tmp_path / "known.txt").write_text("prose")
    assert texts(file_source([str(tmp_path)])) == ["prose"]  # as before: what has no known name is left out where others have


def test_a_pattern_names_the_files_of_its_ending(tmp_path: Path) -> None:
    for name in ("a.log", "b.txt", "c.cfg"):
        (tmp_path / name).write_text(name)
    assert texts(file_source([f"{tmp_path}/*.log"])) == ["a.log"]
    assert texts(file_source([f"{tmp_path}/*"])) == ["b.txt"]
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError, match="pdftotext"):
        file_source([f"{tmp_path}/*.pdf"])


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    (tmp_path / "a").write_bytes(b"\0\1\2" * 99)
    for name, says in (("a.docx", "pandoc"), ("a", r"\.txt .*\.jsonl .*\.parquet")):
        with pytest.raises(DataError, match=says):
            open_source([str(tmp_path / name)])

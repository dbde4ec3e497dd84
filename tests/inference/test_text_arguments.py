"""A file, stdin or the text itself, and never one for another: `text_arguments.py` is the one place that reads them."""

import json
import os
import sys
from pathlib import Path

import pytest

from llamactl.errors import UserError
from llamactl.inference import text_arguments
from llamactl.inference.text_arguments import read_argument, read_lines, read_piped, read_text_file
from llamactl.tokenizer import bpe
from tests.cli.inline import Answer, type_in
from tests.export.test_exports import SHAPE, save

NOT_TEXT = {
    "latin-1": "café au lait".encode("latin-1"),
    "cp1252": "it’s “so”".encode("cp1252"),
    "shift_jis": "これは日本語です".encode("shift_jis"),
    "utf-16 without a mark": "some plain words".encode("utf-16-le"),
    "half a character": "€".encode()[:2],
    "a surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "NUL": b"a\0b",
    "gzip": b"\x1f\x8b\x08\x00\x00",
}
TEXTS = {
    "a mark": ("\ufeffcafé".encode(), "café"),
    "utf-16 with a mark": ("café".encode("utf-16"), "café"),
    "line ends": (b"a\r\nb\rc\n", "a\r\nb\rc\n"),
    "controls": ("a\x0b\x0c\x85\u2028b".encode(), "a\x0b\x0c\x85\u2028b"),
}


@pytest.fixture
def saved(home: Path) -> Path:
    return save(SHAPE, bpe.byte_tokenizer())


def ask(command: str, source: str, data: bytes, home: Path) -> Answer:
    """Give bytes to a command as a file, or through stdin as `-` or without an argument."""
    file = home / "given.txt"
    file.write_bytes(data)
    options = ["--max-new-tokens", "2"] if command == "sample" else []
    if source == "file":
        return type_in(command, *options, *(["--prompts"] if command == "sample" else []), str(file))
    return type_in(command, *options, *(["-"] if source == "-" else []), stdin=data)


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("data", NOT_TEXT.values(), ids=NOT_TEXT)
def test_bytes_that_are_no_text_are_named(data: bytes, home: Path) -> None:
    for command, source in (("surprise", "file"), ("surprise", "-"), ("surprise", "pipe"), ("sample", "file"), ("sample", "-"),
                            ("sample", "pipe"), ("eval", "-")):  # fmt: skip
        answer = ask(command, source, data, home)
        assert answer.code == 3, (command, source)
        assert ("given.txt" if source == "file" else "stdin") in answer.err
        assert "not" in answer.err
        assert "\ufffd" not in answer.out + answer.err


@pytest.mark.parametrize(("data", "text"), TEXTS.values(), ids=TEXTS)
def test_text_is_read_as_it_is(data: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(data)
    assert read_text_file(tmp_path / "a") == text
    with (tmp_path / "a").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert read_argument("-") == text


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_only_a_line_feed_ends_a_line(end: str, inside: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"one{inside}two{end}three", "utf-8", newline="")
    assert read_lines(tmp_path / "a") == [f"one{inside}two", "three"]


@pytest.mark.usefixtures("saved")
def test_prompts_and_questions_keep_their_lines_whole(home: Path) -> None:
    prompts = ["one\u2028two", "three\x85four\x0c", "five"]
    (home / "p").write_text("".join(f"{prompt}\r\n" for prompt in prompts), "utf-8", newline="")
    answer = type_in("sample", "--prompts", str(home / "p"), "--json", "--max-new-tokens", "1")

    assert [json.loads(line)["prompt"] for line in answer.out.split("\n") if line] == prompts
    (home / "q").write_text('{"context": "a\u2028b\x85", "choices": ["c\u2029", "d"], "answer": 0}\n\n' * 2, "utf-8")
    answer = type_in("eval", "--questions", str(home / "q"), "--json")
    assert json.loads(answer.out)["results"][str(home / "q")]["questions"] == 2


MISSING = ["nofile.txt", "NOFILE.TXT", "a.jsonl", "./nofile", "texts/a", "/nowhere/at all.txt", "*.txt", "notes.md", "x.tar.gz"]
LITERAL = [
    "The people",
    "Is it 3.5 or 4?",
    "I read README.md today",
    "either this / or that",
    "word",
    "end.",
    "日本語。",
    "a\nb.txt",
]


@pytest.mark.parametrize("text", MISSING)
def test_a_name_without_a_file_is_not_measured(saved: Path, text: str) -> None:
    answer = type_in("surprise", text)
    assert answer.code == 3
    assert f"There is no file {text}" in answer.err
    assert "--text" in answer.err
    assert type_in("surprise", "--text", text, "--json").code == 0


@pytest.mark.parametrize("text", LITERAL)
def test_words_are_a_text(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_argument(text) == text
    if "/" not in text:
        (tmp_path / text).write_text("of the file")
        assert read_argument(text) == "of the file"


@pytest.mark.parametrize("kind", ["folder", "fifo", "zero", "unreadable", "dangling", "huge", "empty", "spaces"])
def test_what_is_no_file_of_text_is_named(kind: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_arguments, "LARGEST", 1 << 20)
    monkeypatch.setattr(text_arguments, "PATIENCE", 0.1)
    path = tmp_path / "given"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path = Path("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.write_text(" \n\t\u3000\n" if kind == "spaces" else "")
        path.chmod(0 if kind == "unreadable" else 0o600)
    if kind == "unreadable" and os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    for words in (("surprise",), ("sample", "--prompts"), ("eval", "--questions")):
        answer = type_in(*words, str(path))
        assert answer.code == 3, (words, answer)
        assert str(path) in answer.err or kind in ("empty", "spaces", "fifo")


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("surprise", ""), 2), (("surprise", "--text", ""), 2), (("surprise", " \n"), 3), (("surprise", "--text", "\t"), 3),
        (("surprise",), 2), (("surprise", "-"), 3), (("sample",), 2), (("sample", "--json"), 2), (("eval", "-"), 3),
        (("surprise", "a", "--text", "b"), 2), (("sample", "a", "--stop", ""), 2), (("eval", "-", "--data", "d"), 2),
        (("sample", "a", "--stop", "x", "--stop", ""), 2),
        (("sample", "a", "--log-probabilities"), 2), (("surprise", "caf\udce9"), 2), (("surprise", "--text", "\udce9"), 2),
        (("sample", "caf\udce9"), 2), (("sample", "a", "--stop", "\udce9"), 2), (("eval", "caf\udce9"), 3),
        (("eval", "-", "--split", "train"), 2), (("eval", "--text-column", "body"), 2), (("eval", "--limit", "3"), 2),
    ],
)  # fmt: skip
def test_nothing_to_do_and_options_that_do_nothing_are_refused(words: tuple[str, ...], code: int) -> None:
    assert type_in(*words).code == code


@pytest.mark.parametrize("command", ["surprise", "sample", "eval"])
def test_a_file_of_nothing_is_not_measured(command: str, saved: Path, home: Path) -> None:
    for data in (b"", b"\n", b"\xef\xbb\xbf", "\u3000 \r\n".encode()):
        answer = ask(command, "file", data, home)
        assert answer.code == 3, data
        assert "0.0000" not in answer.out + answer.err


def test_a_closed_stdin_is_no_prompt(saved: Path) -> None:
    for words in (("sample",), ("surprise",)):
        assert type_in(*words, stdin=None).code == 2


def test_what_is_piped_in_is_the_prompt(saved: Path) -> None:

    words = ("--json", "--max-new-tokens", "2")
    for data, prompt in ((b"The people\n", "The people"), (b"a\r\nb\r\n", "a\r\nb"), (b"x", "x")):
        assert json.loads(type_in("sample", *words, stdin=data).out)["prompt"] == prompt
        assert json.loads(type_in("sample", "-", *words, stdin=data).out)["prompt"] == prompt
    assert json.loads(type_in("sample", "typed", *words, stdin=b"piped").out)["prompt"] == "typed"


def test_a_prompt_that_is_a_file_is_taken_as_a_text_and_that_is_said(saved: Path, home: Path) -> None:
    (home / "p.txt").write_text("of the file")
    answer = type_in("sample", str(home / "p.txt"), "--max-new-tokens", "1")
    assert "--prompts" in answer.err
    assert answer.out.startswith(str(home / "p.txt"))


@pytest.mark.parametrize("text", ["word " * 2_000, "x" * 5_000, "[bold]a[/", "[/]"])
def test_any_words_can_be_typed(saved: Path, text: str) -> None:
    assert type_in("sample", text, "--max-new-tokens", "1").out.startswith(text.rstrip(" "))
    assert type_in("surprise", "--text", text).code == 0


def test_a_silent_pipe_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a program that started this one and forgot it."""
    monkeypatch.setattr(text_arguments, "PATIENCE", 0.1)
    reader, writer = os.pipe()
    with os.fdopen(reader) as file, os.fdopen(writer, "w") as other:
        monkeypatch.setattr(sys, "stdin", file)
        assert read_piped() is None
        other.write("late")
        other.close()
        assert read_piped() == "late"


def test_a_fifo_with_a_writer_is_read(tmp_path: Path) -> None:
    """As `--prompts <(generate)` is."""
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo")
    os.close(writer)
    assert read_lines(f"/dev/fd/{reader}") == ["one", "two"]
    os.close(reader)


def test_too_much_is_refused_before_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_arguments, "LARGEST", 10)
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_text_file(tmp_path / "a") == "0123456789"
    (tmp_path / "a").write_bytes(b"0123456789x")
    with pytest.raises(UserError, match="too large"):
        read_text_file(tmp_path / "a")

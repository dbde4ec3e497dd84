"""How text becomes documents: a long one is cut, and a limit of its bytes judges it before that."""

from collections.abc import Iterator

import pytest

from llamactl.corpus.splitting import LONGEST_TEXT, TooLong, split_documents

WORD = "word "
LONG = WORD * 700_000  # 3.5 MB
BLOCK = 1 << 16


def blocks(text: str) -> Iterator[str]:
    """Yield a text as a file is read."""
    yield from (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))


# How often a rule cuts at the separator is its own affair: there is a long document between two short ones.
@pytest.mark.parametrize(
    ("rule", "separator"), [("lines", "\n"), ("paragraphs", "\n\n"), ("<end>", "<end>"), ("re:<e[n]d>", "<end>")]
)
@pytest.mark.parametrize("letter", ["a", "é", "字"])
def test_a_long_document_is_left_out_and_counts_once(rule: str, separator: str, letter: str) -> None:
    long = LONG.replace("w", letter)
    size = len(long.encode())
    text = separator.join(["before", long, "after"])
    for limit in (5, 100, 500_000, 2_000_000, size - 1):
        found = list(split_documents(blocks(text), rule, 0, limit))
        expected = ["before", TooLong(size), "after"] if limit > 5 else [TooLong(6), TooLong(size), "after"]
        assert found == expected
    kept = list(split_documents(blocks(text), rule, 0, size))
    assert kept == list(split_documents(blocks(text), rule, 0))
    assert all(isinstance(part, str) and len(part) <= LONGEST_TEXT + BLOCK for part in kept)
    assert separator.join(["before", "".join(map(str, kept[1:-1])), "after"]) == text


def test_a_long_file_is_left_out() -> None:
    assert list(split_documents(blocks(LONG), "files", 0, len(LONG) - 1)) == [TooLong(len(LONG))]
    assert "".join(map(str, split_documents(blocks(LONG), "files", 0, len(LONG)))) == LONG


def test_a_separator_right_behind_a_cut_ends_the_document() -> None:
    first = "a" * (LONGEST_TEXT + 5)
    assert list(split_documents(["x\n", first, "\n", "y"], "lines", 0, LONGEST_TEXT)) == ["x", TooLong(len(first)), "y"]


def test_a_stretch_is_judged_by_itself() -> None:
    text = "a line\n\n" * 100
    assert all(isinstance(found, str) for found in split_documents([text], "chunks", 50, 100))


@pytest.mark.parametrize("rule", ["files", "chunks", "lines", "paragraphs", "<end>"])
def test_a_text_without_documents_is_an_empty_one(rule: str) -> None:
    for text in ("", " \n\n "):
        assert "".join(map(str, split_documents([text], rule, 50, 100))).strip() == ""
        assert list(split_documents([], rule, 50, 100)) == [""]

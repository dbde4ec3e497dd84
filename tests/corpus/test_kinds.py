"""Kinds of files by their first bytes: text that begins with the letters of a signature is text."""

import pytest

from llamactl.corpus.kinds import MAGIC, MARKUP, OFFICE, PDF, describe_magic


@pytest.mark.parametrize(("place", "magic", "other"), MAGIC)
def test_only_a_markup_is_told_by_letters_alone(place: int, magic: bytes, other: object) -> None:
    head = b"x" * place + magic
    if magic in MARKUP:
        assert describe_magic(head + b" and more") is other
    elif magic.isascii() and magic.decode().isprintable():
        assert describe_magic(head + b" is the name of a format.\n") is None
    assert describe_magic(head + b"\0\1\2")


@pytest.mark.parametrize(
    "text",
    ["ID3 (Iterative Dichotomiser 3) is an algorithm.", "BZh is a name.", "BZh91AY&SY begins a file.", "GIF89a has colours.",
     "GIF8", "OggS is a mark.", "Rar! said the crow.", "PAR1 is on the cover.", "ARROW1 flew."],
)  # fmt: skip
def test_a_text_may_begin_with_any_letters(text: str) -> None:
    assert describe_magic(text.encode() * 9) is None


def test_markup_is_known() -> None:
    assert {describe_magic(begin + b"1.4\n") for begin in MARKUP} == {PDF, OFFICE}

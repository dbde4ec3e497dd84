"""Encoders give the ids of the reference, whichever is installed."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamactl import install_command
from llamactl.corpus.sources import sample_source
from llamactl.errors import UsageError
from llamactl.tokenizer import bpe, encoders
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.encoders import ENCODERS, Encoded, encoders_agree, get_encoder

GPT2 = bpe.gpt2_tokenizer()
TORTURE = [
    "",
    " ",
    "\n\n \t",
    "a" * 100_000,
    " " * 100_000,
    "^" * 100_000,
    "don't 🦙 \u0301 <|endoftext|>",
    "日本語" * 999,
    "\x00\x01",
    "\r\n\t'll",
]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_tiktokens_ids(name: str, documents: list[str]) -> None:
    for made in (GPT2, bpe.byte_tokenizer(), bpe.train_bpe(iter(documents), 700)):
        assert encoders_agree(name, made, [*documents, *TORTURE])


@pytest.mark.parametrize("name", ENCODERS)
def test_twenty_thousand_real_documents(name: str) -> None:
    """The paragraphs of the sample: GPT-2's ids as tiktoken gives them, and each text comes back."""
    parts = [Path(part.location).read_text("utf-8") for part in sample_source().parts]
    paragraphs = list(dict.fromkeys(line for text in parts for line in text.splitlines() if line))
    assert len(paragraphs) >= 20_000
    ids, lengths = ENCODERS[name](GPT2)(paragraphs)
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    assert [GPT2.decode(row) for row in rows] == paragraphs
    assert np.array_equal(ids, np.concatenate([GPT2.encode(text) for text in paragraphs]))


@cache
def encoder_of(name: str) -> encoders.Encoder:
    return ENCODERS[name](GPT2)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_any_text_comes_back(name: str, texts: list[str]) -> None:
    """Code points that no version of Unicode assigns are left out: engines may know different versions."""
    ids, lengths = encoder_of(name)(texts)
    rows = np.split(ids, np.cumsum(lengths)[:-1]) if texts else []
    assert [GPT2.decode(row) for row in rows] == texts


def test_an_encoder_that_errs_is_found_out(documents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(made: Tokenizer) -> encoders.Encoder:
        right = encoders.tiktoken_encoder(made)
        return lambda texts: Encoded(right(texts).ids ^ 1, right(texts).lengths)

    monkeypatch.setitem(ENCODERS, "fastokens", broken)
    assert not encoders_agree("fastokens", GPT2, documents[:1])


def test_only_the_chosen_rows_are_ended() -> None:
    encoded = Encoded(np.arange(6, dtype=np.uint32), np.array([2, 0, 1, 3]))
    rows = np.array([True, True, False, True])
    assert encoded.with_separators(rows, (99,)).tolist() == [0, 1, 99, 99, 3, 4, 5, 99]
    assert encoded.with_separators(rows, (99, 7)).tolist() == [0, 1, 99, 7, 99, 7, 3, 4, 5, 99, 7]
    assert encoded.with_separators(np.zeros(4, dtype=bool), (99,)).tolist() == []


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_encoder("auto") in ENCODERS
    with pytest.raises(UsageError, match="Did you mean 'tiktoken'"):
        get_encoder("tictoken")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastokens" else object())
    assert get_encoder("auto") == "tiktoken"
    with pytest.raises(UsageError, match=re.escape(install_command("fast"))):
        get_encoder("fastokens")

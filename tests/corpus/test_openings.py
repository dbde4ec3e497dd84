"""Held-out openings: beginnings of documents that no training saw, whatever the language."""

from dataclasses import replace

import numpy as np
import pytest

from llamactl.corpus.dataset import Dataset
from llamactl.corpus.openings import LONGEST, held_out_openings
from llamactl.tokenizer import bpe


def with_documents(dataset: Dataset, *shards: list[str]) -> Dataset:
    tokenizer = bpe.byte_tokenizer()
    parts = [
        np.concatenate([np.append(tokenizer.encode(text), tokenizer.end) for text in texts] or [np.zeros(0)]).astype(np.uint16)
        for texts in shards
    ]
    return replace(dataset, tokenizer=tokenizer, val=parts)


def test_each_is_how_a_document_begins(dataset: Dataset) -> None:
    texts = [f"Chapter {number} is about\nsomething else entirely. {'And so on. ' * 40}" for number in range(12)]
    openings = held_out_openings(with_documents(dataset, texts[:5], [], texts[5:]), 3)
    assert len(openings) == len(set(openings)) == 3
    beginnings = [" ".join(text.split()) for text in texts]
    for opening in openings:
        assert any(text.startswith(opening + " ") for text in beginnings)
        assert len(opening) <= LONGEST


@pytest.mark.parametrize("text", ["这是一本没有空格的书" * 20, "🙂" * 200])
def test_a_text_without_spaces_is_cut_at_a_character(dataset: Dataset, text: str) -> None:
    (opening,) = held_out_openings(with_documents(dataset, [text]), 3)
    assert text.startswith(opening)
    assert 0 < len(opening) <= LONGEST


def test_documents_that_begin_alike_are_one_prompt(dataset: Dataset) -> None:
    same = ["Dear Sir or Madam, I write to you because of " + name * 30 for name in "abcdefgh"]
    assert len(held_out_openings(with_documents(dataset, same), 3)) == 1


def test_without_held_out_text_there_are_none(dataset: Dataset) -> None:
    assert held_out_openings(with_documents(dataset), 3) == held_out_openings(with_documents(dataset, []), 3) == ()
    assert held_out_openings(with_documents(dataset, ["", "", " \n"]), 3) == ()

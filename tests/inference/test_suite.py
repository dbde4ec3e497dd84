"""The suite's questions and scores: known ones of models that guess and that know, in any language, and of little text."""

import argparse
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamactl.corpus.dataset import Dataset
from llamactl.corpus.words import count_words
from llamactl.errors import DataError, Diverged
from llamactl.inference.lexicon import Lexicon
from llamactl.inference.likelihoods import score_choices, word_endings
from llamactl.inference.suite import make_suite_text, read_suite_text, run_suite, share_of_right
from llamactl.inference.suite_items import TESTS, Item, build_items
from llamactl.model.cache import KVCache
from llamactl.model.llama import Llama
from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import Tokenizer
from tests.inference.test_evaluate import model

RAW = bpe.byte_tokenizer()


@dataclass(frozen=True)
class Question:
    context: str
    choices: tuple[str, ...]
    ends: bool


class Parrot(Llama):
    """Knows one text by heart: the next byte is the one that follows the last 24 there. The cache holds bytes as keys."""

    def __init__(self, text: str) -> None:
        super().__init__(model(257, context=512).config.model_copy(update={"dim": 257}))
        self.following = {}
        ids = RAW.encode(text).tolist()
        for place in range(24, len(ids)):
            self.following[tuple(ids[place - 24 : place])] = ids[place]
        with torch.no_grad():
            self.lm_head.weight.copy_(torch.eye(257))

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        dropout: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        assert cache is not None
        layer = cache.layers[0]
        before = layer.length
        keys = tokens[:, None, :, None].float().expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        seen = layer.update(keys, keys)[0][:, 0, :, 0].long().tolist()
        states = torch.zeros(*tokens.shape, 257)
        for row, ids in enumerate(seen):
            for place in range(before, len(ids)):
                known = self.following.get(tuple(ids[max(0, place - 23) : place + 1]))
                if known is not None:
                    states[row, place - before, known] = 10.0
        return states


@pytest.fixture(scope="module")
def english(documents: list[str]) -> list[str]:
    return documents[::2]


def by_hand(made: Llama, tokenizer: Tokenizer, question: Question, choice: str, shared: int) -> float:
    ids = tokenizer.encode_after_end(question.context + choice)
    logs = made(torch.tensor([ids]))[0, :, : tokenizer.vocab_size].log_softmax(-1)
    total: float = sum(logs[place - 1, ids[place]].item() for place in range(shared, len(ids)))
    ends = torch.from_numpy(word_endings(tokenizer))
    return total + (logs[-1][ends].logsumexp(-1).item() if question.ends else 0.0)


def test_likelihoods_are_those_without_a_cache() -> None:
    """Contexts of many lengths, with a beginning that choices share and with one that is another's."""
    questions = [
        Question("The people of the United States " * 2, ("nation", "national", "nations"), True),
        Question("The", (" sky is", " sea", "m"), False),
        Question("", ("ab", "ac"), False),
        Question("x" * 60, ("yes", "no"), True),
    ]
    made = model(257, context=256)
    with torch.no_grad():
        made.lm_head.weight.mul_(20)
    found = score_choices(made, RAW, questions)
    for question, likelihoods in zip(questions, found, strict=True):
        ids = [RAW.encode_after_end(question.context + choice) for choice in question.choices]
        shared = next((n for n, each in enumerate(zip(*ids, strict=False)) if len(set(each)) > 1), min(map(len, ids)))
        room = (shared - 1) % 16 if shared - 1 > 16 else 0
        for choice, likelihood in zip(question.choices, likelihoods, strict=True):
            # What is left out of a context, so that many are of one length, comes after the end-of-text token.
            cut = Question(question.context[room:], question.choices, question.ends)
            assert likelihood == pytest.approx(by_hand(made, RAW, cut, choice, shared - room), abs=1e-3)


def test_a_word_is_not_likelier_for_being_the_beginning_of_another() -> None:
    bank = "of a national bank; "
    (found,) = score_choices(Parrot(bank * 6), RAW, [Question(bank * 3 + "of a ", ("nation", "national"), True)])
    assert found[1] > found[0]


def test_choices_and_contexts_beyond_the_models_context_are_cut(english: list[str]) -> None:
    made = model(257, context=16)
    text = english[0]
    found = score_choices(
        made, RAW, [Question(text[:500], (text[500:600], "x" + text[500:600]), True), Question("", ("a" * 99, "b"), False)]
    )
    assert all(math.isfinite(each) for likelihoods in found for each in likelihoods)


def test_ids_that_end_a_word(dataset: Dataset) -> None:
    for tokenizer in (RAW, dataset.tokenizer):
        ends = word_endings(tokenizer)
        texts = [tokenizer.decode_bytes([number]) for number in range(tokenizer.vocab_size)]
        assert ends[tokenizer.end]
        assert ends[[texts.index(text) for text in (b" ", b".", b"\n", b'"')]].all()
        assert not ends[[texts.index(text) for text in (b"a", b"Z", b"0", b"_", b"'", b"\xc3", b"\x80")]].any()


def test_a_model_that_finds_all_bytes_alike_guesses(english: list[str]) -> None:
    """Choices of one length tie; of the other endings, as many are longer as are shorter."""
    text = make_suite_text([text for text in english if text.isascii()])
    scores, left_out = run_suite(model(257, context=256, uniform=True), RAW, text, limit=40)
    assert not left_out
    found = {score.name: score for score in scores}
    for name in ("minimal pairs", "order", "word", "ending", "cloze"):
        assert found[name].accuracy == pytest.approx(found[name].chance), name
        assert not found[name].above_chance
    assert [found[name].chance for name in ("minimal pairs", "cloze")] == [0.5, pytest.approx(0.2)]
    assert found["minimal pairs"].items == 120


def test_a_model_that_knows_the_text_is_right(english: list[str]) -> None:
    some = english[:12]
    scores, _ = run_suite(Parrot("".join(some)), RAW, make_suite_text(some), limit=20)
    assert min(score.accuracy for score in scores) > 0.9
    assert all(score.above_chance for score in scores)


def test_training_rises_above_chance_and_the_bigrams_are_known(dataset: Dataset) -> None:
    text = read_suite_text(dataset, "val")
    scores, _ = run_suite(model(dataset.info.vocab_size, context=64), dataset.tokenizer, text, limit=30)
    for score in scores:
        assert score.bigram is not None
        assert score.bigram > score.chance
        assert score.error is not None
    assert read_suite_text(dataset, "train").bigrams is False


def test_questions_are_the_same_each_time_and_the_first_of_more(english: list[str]) -> None:
    lexicon = Lexicon(count_words(english).words)
    first, again = (build_items(english, lexicon, "seed", 30) for _ in range(2))
    assert first == again
    assert build_items(english, lexicon, "another", 30) != first
    fewer = build_items(english, lexicon, "seed", 10)
    assert fewer == {name: items[:10] for name, items in first.items()}


def test_what_takes_a_words_place_is_like_it(english: list[str]) -> None:
    """As often more frequent as less, so that a model of frequencies alone guesses; of cloze each rank is as often right."""
    counts = count_words(english).words
    items = build_items(english, Lexicon(counts), "seed", 60)
    for name in ("word", "ending"):
        signs: Counter[int] = Counter()
        for item in items[name]:
            right, wrong = next(pair for pair in zip(*item.words, strict=True) if pair[0] != pair[1])
            assert right.islower() == wrong.islower()
            assert name == "ending" or len(right) == len(wrong)
            assert name == "word" or right[:3] == wrong[:3]
            signs[(counts[wrong] > counts[right]) - (counts[wrong] < counts[right])] += 1
        assert abs(signs[1] - signs[-1]) <= 2 + signs[0]
    ranks = Counter(sum(counts[c] >= counts[item.choices[0]] for c in item.choices[1:]) for item in items["cloze"])
    assert set(ranks) == set(range(5))
    for item in items["order"]:
        assert Counter(item.words[0]) == Counter(item.words[1])
    for item in items["completion"]:
        assert len({choice[:2] for choice in item.choices}) == 1
        assert 3 <= len(set(item.choices)) == len(item.choices) <= 10


def test_the_answer_is_what_the_text_says(english: list[str]) -> None:
    items = build_items(english, Lexicon(count_words(english).words), "seed", 20)
    for item in (item for made in items.values() for item in made):
        assert item.context + item.choices[0] in english[item.passage]
        assert item.choices[0] not in item.choices[1:]


def test_a_model_whose_numbers_overflow_is_no_guesser(english: list[str]) -> None:
    made = model(257, context=64)
    with torch.no_grad():
        made.lm_head.weight.fill_(3e38)
    with pytest.raises(Diverged, match="no numbers"):
        run_suite(made, RAW, make_suite_text(english[:9]), limit=20)


def test_equal_likelihoods_share_the_answer() -> None:
    assert share_of_right([0.0, 0.0]) == 0.5
    assert share_of_right([-1.0, -1.0, -1.0, -2.0]) == pytest.approx(1 / 3)
    assert (share_of_right([-1.0, -2.0]), share_of_right([-2.0, -1.0])) == (1, 0)


def chinese() -> list[str]:
    chance, characters = random.Random(0), "天地人和平国家的是不了在有我他这中大来上个们到说时要就出会也"
    return [
        "".join(chance.choices(characters, k=12)) + "。" + "".join(chance.choices(characters, k=9)) + "！\n" for _ in range(80)
    ]


def names(items: dict[str, list[Item]]) -> Sequence[str]:
    return [name for name, made in items.items() if len(made) >= 20]


def test_languages_without_spaces_and_code_have_questions() -> None:
    texts = chinese()
    scores, left_out = run_suite(model(257, context=128), RAW, make_suite_text(texts), limit=20)
    assert [score.name for score in scores] == ["minimal pairs", "order", "word", "cloze"]
    assert left_out == {"ending": 0, "completion": 0}
    code = Path(argparse.__file__).read_text("utf-8")
    passages = [code[start : start + 8000] for start in range(0, len(code), 8000)]
    assert names(build_items(passages, Lexicon(count_words(passages).words), "seed", 20)) == [*TESTS]


def test_little_text_is_refused_and_odd_text_does_no_harm() -> None:
    made = model(257, context=64)
    noise = bytes(random.Random(0).choices(range(256), k=20_000)).decode("utf-8", "replace")
    for text in ("", "A few words only, no more.", "\x00\x1b[2J\u202e" * 50, "word " * 5_000, "x" * 10_000, noise[:300]):
        with pytest.raises(DataError, match="too little text") as caught:
            run_suite(made, RAW, make_suite_text([text]))
        assert "llamactl eval" in caught.value.fix
    build_items([noise], Lexicon(count_words([noise]).words), "seed", 20)

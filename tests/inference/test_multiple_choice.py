"""Multiple choice: likelihoods by hand, lines that are no questions, and what guessing looks like."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamactl.errors import DataError
from llamactl.inference.multiple_choice import Question, Score, log_likelihoods, read_questions, score_questions
from llamactl.runs.scores import ScoredTest
from llamactl.tokenizer import bpe
from tests.inference.test_evaluate import model

RAW = bpe.byte_tokenizer()
SKY = Question(context="The sky is", choices=("blue", "a dog", ""), answer=0)


def test_likelihoods_are_sums_over_the_choice_alone() -> None:
    made = model(257)
    found = log_likelihoods(made, RAW, SKY)
    before = [RAW.end, *RAW.encode(SKY.context).tolist()]
    for choice, likelihood in zip(SKY.choices, found, strict=True):
        ids = [*before, *RAW.encode(f" {choice}").tolist()]
        logs = made(torch.tensor([ids]))[0, :, :257].log_softmax(-1)
        by_hand = sum(logs[place - 1, ids[place]].item() for place in range(len(before), len(ids)))
        assert likelihood == pytest.approx(by_hand, abs=1e-4)


def test_a_long_context_loses_its_beginning() -> None:
    made = model(257, context=16)
    long = Question(context="x" * 100 + "The end", choices=("is", "near"), answer=1)
    short = Question(context="x" * 30 + "The end", choices=("is", "near"), answer=1)
    assert log_likelihoods(made, RAW, long) == pytest.approx(log_likelihoods(made, RAW, short), abs=1e-5)


def test_a_model_that_knows_is_right_and_one_that_does_not_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [Question(context=f"{number}", choices=("a", "b"), answer=number % 2) for number in range(100)]
    from llamactl.inference import multiple_choice

    monkeypatch.setattr(multiple_choice, "log_likelihoods", lambda _, __, question: [-1.0, -1.0 + 2 * question.answer - 1])
    approx: Any = pytest.approx(0.005, abs=1e-4)
    assert score_questions(model(257), RAW, questions) == Score(100, 0.5, 1.0, approx, 1.0, approx)
    monkeypatch.setattr(multiple_choice, "log_likelihoods", lambda *_: [0.0, -1.0])
    guessed = score_questions(model(257), RAW, questions)
    assert guessed.accuracy == 0.5
    assert guessed.accuracy_error == pytest.approx(0.05, abs=0.001)
    assert not guessed.above_chance
    assert not replace(guessed, accuracy=0.1).above_chance, "below is not above"
    assert replace(guessed, accuracy=0.7).above_chance


@pytest.mark.parametrize(
    ("count", "choices", "above"), [(1, 2, False), (1, 4, False), (4, 2, False), (5, 2, True), (2, 9, True)]
)
def test_a_few_right_answers_may_be_luck(count: int, choices: int, above: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamactl.inference import multiple_choice

    questions = [Question(context="", choices=tuple("abcdefghi"[:choices]), answer=0) for _ in range(count)]
    monkeypatch.setattr(multiple_choice, "log_likelihoods", lambda *_: [0.0] + [-1.0] * (choices - 1))
    score = score_questions(model(257), RAW, questions)
    assert score.accuracy == 1.0
    assert score.accuracy_error > 0
    assert score.above_chance == above
    tested = ScoredTest(name="cloze", items=count, accuracy=1.0, error=0.0, chance=1 / choices, bigram=None)
    assert tested.above_chance == above


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "JSON"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "choices"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "count from 0"),
        ('{"context": "a", "choices": ["b", "c"], "answer": -1}', "answer"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 0, "x": 1}', "x"),
        ('{"choices": ["b", "c"], "answer": 0}', "context"),
    ],
)
def test_lines_that_are_no_questions_are_named(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(SKY.model_dump_json() + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2") as caught:
        read_questions(path)
    assert says in caught.value.why
    path.write_text(SKY.model_dump_json() + "\n")
    assert read_questions(path) == [SKY]
    path.write_text("")
    with pytest.raises(DataError, match="no questions"):
        read_questions(path)

"""Multiple-choice questions, answered by the most likely choice as in lm-evaluation-harness."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, ValidationError, model_validator
from torch.nn import functional as F

from llamactl.errors import DataError
from llamactl.inference.text_arguments import read_lines
from llamactl.model.llama import Llama
from llamactl.runs.scores import is_above_chance
from llamactl.storage.records import Record, explain_error, to_json
from llamactl.tokenizer.bpe import Tokenizer


class Question(Record):
    """A line of a file of questions; a space comes between the context and each choice."""

    context: str
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> "Question":
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} is not one of {len(self.choices)} choices, which count from 0")
        return self


@dataclass(frozen=True)
class Score:
    """The shares of correct answers and their standard errors: ranked by likelihood, and by likelihood per character."""

    questions: int
    chance: float
    accuracy: float
    accuracy_error: float
    accuracy_per_character: float
    accuracy_per_character_error: float

    @property
    def above_chance(self) -> bool:
        """Return whether the accuracy is above chance by more than two standard errors."""
        return is_above_chance(self.accuracy, self.chance, self.accuracy_error, self.questions)


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a JSONL file, or of stdin for `-`; blank lines are skipped.

    Raises DataError for an invalid line, which it names, and for a file without questions.
    """
    questions = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            questions.append(Question.model_validate_json(line))
        except ValidationError as error:
            example = to_json({"context": "The sky is", "choices": ["blue", "a dog"], "answer": 0})
            what = f"{path}, line {number}, is not a question."
            raise DataError(what, explain_error(error), f"A line is like {example}") from error
    if not questions:
        raise DataError(f"{path} has no questions.", "Each of its lines is one.")
    return questions


@torch.inference_mode()
def score_questions(model: Llama, tokenizer: Tokenizer, questions: list[Question]) -> Score:
    """Score the model's answers; each context begins with the end-of-text token, as documents do in training."""
    right = torch.zeros(2, len(questions), dtype=torch.float64)
    for number, question in enumerate(questions):
        likelihoods = torch.tensor(log_likelihoods(model, tokenizer, question))
        lengths = torch.tensor([float(max(1, len(choice))) for choice in question.choices])
        for row, values in enumerate((likelihoods, likelihoods / lengths)):
            right[row, number] = float(values.argmax() == question.answer)
    shares = right.mean(1).tolist()
    errors = [_standard_error(share, len(questions)) for share in shares]
    chance = sum(1 / len(question.choices) for question in questions) / len(questions)
    return Score(len(questions), chance, shares[0], errors[0], shares[1], errors[1])


def _standard_error(share: float, count: int) -> float:
    """Return half of Wilson's interval (1927) of one standard error: where all answers are alike it is not 0."""
    return math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)


@torch.inference_mode()
def log_likelihoods(model: Llama, tokenizer: Tokenizer, question: Question) -> list[float]:
    """Return each choice's log-likelihood in nats given the context; a sequence that is too long loses its beginning."""
    before = tokenizer.encode_after_end(question.context.rstrip(" "))
    wholes = [tokenizer.encode_after_end(f"{question.context.rstrip(' ')} {choice}") for choice in question.choices]
    kept = [whole[-(model.config.context + 1) :] for whole in wholes]
    width = max(map(len, kept))
    rows = torch.tensor([ids + [tokenizer.end] * (width - len(ids)) for ids in kept], device=model.lm_head.weight.device)
    logs = F.log_softmax(model(rows[:, :-1])[..., : tokenizer.vocab_size].float(), -1)
    each = logs.gather(-1, rows[:, 1:, None])[..., 0].cpu().double()
    found = []
    for row, (whole, ids) in enumerate(zip(wholes, kept, strict=True)):
        end = len(ids) - 1
        start = max(0, end - (len(whole) - len(before)))
        found.append(each[row, start:end].sum().item())
    return found

"""Keep what `llamactl eval --suite` found for the checkpoints of a run, in scores.json in its folder."""

import math
import os
from typing import Literal

from pydantic import Field

from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic
from llamactl.storage.records import Count, Record, read_record, to_json

Share = Field(ge=0, le=1)


def is_above_chance(score: float, chance: float, error: float, questions: int) -> bool:
    """Check whether a score is above chance by more than two standard errors.

    They are its own or, where those are larger, those of guesses: a few answers that are all right have hardly any.
    """
    return score - chance > 2 * max(error, math.sqrt(chance * (1 - chance) / max(1, questions)))


class ScoredTest(Record):
    """The score of a test: the share of right answers, its standard error, and the shares that simpler means reach.

    `chance` is that of guessing, `bigram` that of a model of neighbouring words, None where there is none; `error` is None for
    a text of a single passage.
    """

    name: str = Field(max_length=40)
    items: Count
    accuracy: float = Share
    error: float | None = Field(ge=0)
    chance: float = Share
    bigram: float | None = Field(ge=0, le=1)

    @property
    def above_chance(self) -> bool:
        """Return whether the accuracy is above chance by more than two standard errors; False where these are unknown."""
        return self.error is not None and is_above_chance(self.accuracy, self.chance, self.error, self.items)


class SuiteScores(Record):
    """The scores of a model on the questions made from a text: the name and the digest of that, and what was left out."""

    suite: Literal["small"] = "small"
    version: Literal[1] = 1
    step: Count
    data: str
    digest: str
    tests: tuple[ScoredTest, ...]
    left_out: dict[str, Count] = Field({}, description="tests for which there were too few questions, and how many there were")


class ScoresFile(Record):
    """The content of scores.json: the last result of each step and text, by step."""

    format: Literal[1] = 1
    scores: tuple[SuiteScores, ...]


def read_scores(run: RunDir) -> tuple[SuiteScores, ...]:
    """Read the scores of a run's checkpoints, by step; empty without any. Raises DataError when the file is damaged."""
    if not os.path.lexists(run.scores_path):
        return ()
    return read_record(run.scores_path, ScoresFile, run.path).scores


def keep_scores(run: RunDir, scores: SuiteScores) -> None:
    """Add a result to a run's scores, in the place of an earlier one of the same step and text.

    Raises DataError when the file is damaged, WriteFailed when it can't be written.
    """
    others = [each for each in read_scores(run) if (each.step, each.digest) != (scores.step, scores.digest)]
    content = ScoresFile(scores=tuple(sorted((*others, scores), key=lambda each: each.step)))
    atomic.write_file(run.scores_path, to_json(content.model_dump(mode="json"), indent=1) + "\n")


def newest_scores(run: RunDir) -> SuiteScores | None:
    """Return the scores of the newest step that has any; None without one."""
    found = read_scores(run)
    return found[-1] if found else None

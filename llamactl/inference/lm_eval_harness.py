"""Evaluate a checkpoint on the public tasks of lm-evaluation-harness, for scores that compare with published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from llamactl import install_command
from llamactl.errors import NoNetwork, UsageError, suggest_nearest
from llamactl.runs.scores import is_above_chance
from llamactl.tokenizer.bpe import Tokenizer

# GPT-2 124M under the same harness, where a source states it: LAMBADA and PIQA by the model card of crumb/gpt2023,
# ARC-easy by that of BEE-spoke-data/smol_llama-101M-GQA, HellaSwag by llm.c's hellaswag.py.
GPT2 = {
    ("lambada_openai", "acc"): 0.3256,
    ("piqa", "acc"): 0.6289,
    ("arc_easy", "acc"): 0.438,
    ("hellaswag", "acc_norm"): 0.3114,
}
SHOWN = ("acc_norm", "acc", "exact_match")  # a task's main metric is the first of these that it has, unless GPT2 lists another


@dataclass(frozen=True)
class TaskScore:
    """The main metric of a task, usually a share from 0 to 1.

    `error` is its standard error, `chance` the score of random guesses and `gpt2` that of GPT-2 124M; None where unknown.
    """

    task: str
    questions: int
    metric: str
    value: float
    error: float | None
    chance: float | None
    gpt2: float | None

    @property
    def above_chance(self) -> bool:
        """Return whether the score is above chance by more than two standard errors; True where either is unknown."""
        if self.chance is None or self.error is None:
            return True
        return is_above_chance(self.value, self.chance, self.error, self.questions)


@dataclass(frozen=True)
class Scores:
    """The scores of the requested tasks, and the harness's own record of its results."""

    tasks: list[TaskScore]
    record: dict[str, Any]


def run_tasks(
    folder: Path, tokenizer: Tokenizer, tasks: Sequence[str], device: torch.device, limit: int | None = None
) -> Scores:
    """Evaluate the model of a folder on some tasks with lm-evaluation-harness, in fp32.

    A task is a name known to the harness, or the path of a task's .yaml file, whose folder is then searched. Documents begin
    as in training, which `tokenizer` says. Raises UsageError for an unknown task, NoNetwork where the data of a task can't be
    had.
    """
    evaluate, manager = _harness([Path(task).parent for task in tasks if task.endswith(".yaml")])
    names = [Path(task).stem if task.endswith(".yaml") else task for task in tasks]
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(
                f"There is no task {name}.", suggest_nearest(name, manager.all_tasks), "All of them: lm-eval ls tasks"
            )
        if name in getattr(manager, "all_tags", ()):
            raise UsageError(f"{name} is a tag of several tasks.", "", "Name the tasks themselves.")
    # The token before a text without a context, which a folder of another program may not name.
    before = (tokenizer.start or (tokenizer.end,))[0]
    model = {"pretrained": str(folder), "dtype": "float32", "add_bos_token": True, "prefix_token_id": before}
    try:
        record = evaluate(
            "hf", model, tasks=names, task_manager=manager, device=str(device), batch_size=16, limit=limit, verbosity="ERROR"
        )
    except (ConnectionError, TimeoutError) as error:
        fix = "Score questions of your own without it: llamactl eval --questions FILE.jsonl"
        raise NoNetwork("The data of a task can't be had.", f"{error}.", fix) from error
    samples = record.pop("samples")
    kept = {key: record[key] for key in ("results", "versions", "n-samples")} | {"lm_eval": version("lm_eval")}
    return Scores([_score(record, samples, name) for name in names], kept)


def _harness(folders: list[Path]) -> tuple[Any, Any]:
    """Return the harness's function that evaluates, and its index of tasks including those in `folders`; raises UsageError."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models import huggingface  # noqa: F401  # it imports packages that lm_eval alone does not install
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError("lm-evaluation-harness is not installed.", "", install_command("eval")) from error
    return simple_evaluate, TaskManager(include_path=[str(folder) for folder in folders] or None)


def _score(record: dict[str, Any], samples: dict[str, list[dict[str, Any]]], task: str) -> TaskScore:
    """Select the main metric of a task, or of a group of tasks, from the harness's record."""
    found = record["results"][task]
    # A metric and, after a comma, how the answer was taken from what was generated: `acc,none`, `exact_match,strict-match`.
    ways = dict(reversed([key.split(",", 1) for key in found if "," in key and "_stderr" not in key]))
    known = [metric for name, metric in GPT2 if name == task]
    metric = next(metric for metric in (*known, *SHOWN, *reversed(ways)) if metric in ways)
    error = found.get(f"{metric}_stderr,{ways[metric]}")
    leaves = _leaves(record, task)
    chances = [_chance(record["configs"][leaf]["output_type"], samples[leaf]) for leaf in leaves]
    return TaskScore(
        task=task,
        questions=sum(len(samples[leaf]) for leaf in leaves),
        metric=metric,
        value=found[f"{metric},{ways[metric]}"],
        error=error if isinstance(error, float) else None,
        chance=None if metric not in SHOWN or None in chances else fmean(chance for chance in chances if chance is not None),
        gpt2=GPT2.get((task, metric)),
    )


def _leaves(record: dict[str, Any], task: str) -> list[str]:
    """Return the single tasks of a group, recursively; a task that is not a group is returned alone."""
    parts = record["group_subtasks"].get(task)
    return [leaf for part in parts for leaf in _leaves(record, part)] if parts else [task]


def _chance(kind: str, samples: list[dict[str, Any]]) -> float | None:
    """Return the share of correct answers by random guesses: 0 for predicting a word, None where it is not known."""
    if kind == "multiple_choice":
        return fmean(1 / len(sample["arguments"]) for sample in samples)
    return 0.0 if kind == "loglikelihood" else None

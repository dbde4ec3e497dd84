"""Public tasks as lm-evaluation-harness scores them, on a checkpoint's folder as it is: figures that compare with others."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from llamactl.errors import BadUsage, NoNetwork, nearest

# GPT-2 124M under the same harness, where a source states it: LAMBADA and PIQA by the model card of crumb/gpt2023,
# ARC-easy by that of BEE-spoke-data/smol_llama-101M-GQA, HellaSwag by llm.c's hellaswag.py.
GPT2 = {
    ("lambada_openai", "acc"): 0.3256,
    ("piqa", "acc"): 0.6289,
    ("arc_easy", "acc"): 0.438,
    ("hellaswag", "acc_norm"): 0.3114,
}
SHOWN = ("acc_norm", "acc", "exact_match")  # the first of these that a task has stands for it, unless GPT-2 has another


@dataclass(frozen=True)
class TaskScore:
    """A task's main figure, most often a share from 0 to 1; its error, chance and GPT-2's are None where they aren't known."""

    task: str
    metric: str
    value: float
    error: float | None
    chance: float | None
    gpt2: float | None

    @property
    def above_chance(self) -> bool:
        """Whether it is more than two standard errors from guessing."""
        return self.chance is None or self.error is None or abs(self.value - self.chance) > 2 * self.error


@dataclass(frozen=True)
class Scores:
    """A figure for each task asked for, and the harness's own record of all that it found."""

    tasks: list[TaskScore]
    record: dict[str, Any]


def run_tasks(folder: Path, tasks: Sequence[str], device: torch.device, limit: int | None = None) -> Scores:
    """Have the harness evaluate a checkpoint, in fp32.

    A task is a name of the harness's, or the path of a task's .yaml, whose folder is then looked in. Documents begin with the
    end-of-text token, as in training. Raises BadUsage for a task that isn't there, NoNetwork for one whose data can't be had.
    """
    evaluate, manager = _harness([Path(task).parent for task in tasks if task.endswith(".yaml")])
    names = [Path(task).stem if task.endswith(".yaml") else task for task in tasks]
    for name in names:
        if name not in manager.all_tasks:
            raise BadUsage(f"There is no task {name}.", nearest(name, manager.all_tasks), "All of them: lm-eval ls tasks")
    model = {"pretrained": str(folder), "dtype": "float32", "add_bos_token": True}
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
    """The function of the harness that evaluates and its index of tasks, with those of some folders."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models import huggingface  # noqa: F401  # which needs more than lm_eval itself
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise BadUsage("lm-evaluation-harness is not installed.", "", "pip install 'llamactl[eval]'") from error
    return simple_evaluate, TaskManager(include_path=[str(folder) for folder in folders] or None)


def _score(record: dict[str, Any], samples: dict[str, list[dict[str, Any]]], task: str) -> TaskScore:
    """The figure that stands for a task or for a group of tasks."""
    found = record["results"][task]
    metrics = [key.removesuffix(",none") for key in found if key.endswith(",none") and "_stderr" not in key]
    known = [metric for name, metric in GPT2 if name == task]
    metric = next(metric for metric in (*known, *SHOWN, *metrics) if metric in metrics)
    error = found.get(f"{metric}_stderr,none")
    chances = [_chance(record["configs"][leaf]["output_type"], samples[leaf]) for leaf in _leaves(record, task)]
    return TaskScore(
        task=task,
        metric=metric,
        value=found[f"{metric},none"],
        error=error if isinstance(error, float) else None,
        chance=None if metric not in SHOWN or None in chances else fmean(chance for chance in chances if chance is not None),
        gpt2=GPT2.get((task, metric)),
    )


def _leaves(record: dict[str, Any], task: str) -> list[str]:
    """The tasks that a group is made of, down to the last; a task alone is made of itself."""
    parts = record["group_subtasks"].get(task)
    return [leaf for part in parts for leaf in _leaves(record, part)] if parts else [task]


def _chance(kind: str, samples: list[dict[str, Any]]) -> float | None:
    """The share of right answers of one who guesses; a word out of all words is never guessed."""
    if kind == "multiple_choice":
        return fmean(1 / len(sample["arguments"]) for sample in samples)
    return 0.0 if kind == "loglikelihood" else None

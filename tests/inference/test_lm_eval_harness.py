"""lm-evaluation-harness on a checkpoint's folder as it is: the same scores as the reader that is built in."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamactl import install_command
from llamactl.checkpoint import io as checkpoint_io
from llamactl.errors import NoNetwork, UsageError
from llamactl.inference import lm_eval_harness, multiple_choice
from llamactl.inference.lm_eval_harness import Scores, TaskScore, run_tasks
from llamactl.tokenizer import bpe
from tests.checkpoint.test_pretrained import folders as folders
from tests.export.test_exports import SHAPE, save

CPU = torch.device("cpu")
Folders = Callable[..., Path]
TASK = """\
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {questions}}}
test_split: train
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def local_task(home: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of 40 questions: which of four endings did a sentence have? Some are longer than the context."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "cache"))
    dice = random.Random(1)
    ends = [text[200:240].strip() for text in documents[:40]]
    lines = []
    for number, text in enumerate(documents[:40]):
        options = [ends[number], *dice.sample(sorted(set(ends) - {ends[number]}), 3)]  # equal ones would be a tie
        dice.shuffle(options)
        start = dice.choice([0, 150])
        lines.append({"context": text[start:200].rstrip(), "choices": options, "answer": options.index(ends[number])})
    (home / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "ours.yaml").write_text(TASK.format(questions=home / "q.jsonl"))
    return home / "ours.yaml"


@pytest.mark.slow
def test_the_harness_and_the_built_in_reader_agree(local_task: Path, documents: list[str], home: Path) -> None:
    # No padding of the vocabulary: training makes it improbable, but these weights are as they began.
    folder = save(SHAPE.model_copy(update={"vocab_size": 300}), bpe.train_bpe(iter(documents), 300))
    model, tokenizer, _ = checkpoint_io.load_model(folder, CPU)
    built_in = multiple_choice.score_questions(model, tokenizer, multiple_choice.read_questions(home / "q.jsonl"))
    found = run_tasks(folder, tokenizer, [str(local_task)], CPU)
    assert found.tasks[0].task == "ours"
    assert found.tasks[0].chance == 0.25
    # The command line that other people type, on the folder as it is.
    arguments = f"pretrained={folder},dtype=float32,add_bos_token=True"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--tasks", str(local_task)]
    subprocess.run([*command, "--device", "cpu", "--output_path", str(home / "theirs")], check=True, capture_output=True)
    typed = json.loads(next((home / "theirs").rglob("results_*.json")).read_text())["results"]
    assert 0 < built_in.accuracy < 1
    for results in (found.record["results"], typed):
        assert results["ours"]["acc,none"] == built_in.accuracy
        # Ours is Wilson's, which is not zero where all answers are right.
        assert results["ours"]["acc_stderr,none"] == pytest.approx(built_in.accuracy_error, rel=0.05)
        assert results["ours"]["acc_norm,none"] == built_in.accuracy_per_character


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2-tied", "qwen3"])
def test_a_model_of_transformers_has_the_same_scores(local_task: Path, home: Path, folders: Folders, name: str) -> None:
    folder = Path(shutil.copytree(folders(name), home / name))
    model, tokenizer, _ = checkpoint_io.load_model(folder, CPU)
    # Public models name these tokens, and the harness wants them to.
    file, ids = folder / "tokenizer_config.json", [*tokenizer.start[:1], tokenizer.end]
    names = zip(("bos_token", "eos_token")[-len(ids) :], map(tokenizer.name_of, ids), strict=True)
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(names)))
    if not tokenizer.start:  # the harness puts nothing before a context where transformers does not
        tokenizer.encode_after_end = lambda text: tokenizer.encode(text).tolist()  # type: ignore[method-assign]
    built_in = multiple_choice.score_questions(model, tokenizer, multiple_choice.read_questions(home / "q.jsonl"))
    found = run_tasks(folder, tokenizer, [str(local_task)], CPU).record["results"]["ours"]
    assert found["acc,none"] == built_in.accuracy
    assert found["acc_norm,none"] == built_in.accuracy_per_character


def recorded(*tasks: tuple[str, str, int, dict[str, float]], groups: dict[str, list[str]] | None = None) -> Any:
    """What the harness says of tasks: name, kind, how many answers each question has, what was measured."""
    return {
        "results": {name: {f"{metric},none": value for metric, value in found.items()} for name, _, _, found in tasks},
        "configs": {name: {"output_type": kind} for name, kind, _, _ in tasks},
        "samples": {name: [{"arguments": [None] * answers}] * 2_000 for name, _, answers, _ in tasks},
        "group_subtasks": groups or {},
        "versions": {},
        "n-samples": {},
    }


def scores(monkeypatch: pytest.MonkeyPatch, record: Any, *tasks: str) -> Scores:
    class Index:
        all_tasks = ("piqa", "blimp", "lambada_openai", "story", "easy")
        all_tags = ("easy",)

    def say(*_: Any, **__: Any) -> Any:
        if isinstance(record, Exception):
            raise record
        return record

    monkeypatch.setattr(lm_eval_harness, "_harness", lambda folders: (say, Index()))
    return run_tasks(Path("folder"), bpe.byte_tokenizer(), tasks, CPU)


def test_chance_and_gpt2_stand_beside_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(
        ("piqa", "multiple_choice", 2, {"acc": 0.52, "acc_stderr": 0.012, "acc_norm": 0.53, "acc_norm_stderr": 0.012}),
        ("lambada_openai", "loglikelihood", 1, {"perplexity": 90.0, "acc": 0.1, "acc_stderr": 0.004}),
        ("story", "generate_until", 1, {"exact_match": 0.1, "exact_match_stderr": 0.004}),
        ("blimp", "multiple_choice", 0, {"acc": 0.7, "acc_stderr": 0.002}),
        ("blimp_a", "multiple_choice", 2, {}),
        ("blimp_b", "multiple_choice", 4, {}),
        groups={"blimp": ["blimp_inner"], "blimp_inner": ["blimp_a", "blimp_b"]},
    )
    found = scores(monkeypatch, record, "piqa", "lambada_openai", "story", "blimp").tasks
    assert found == [
        TaskScore("piqa", 2_000, "acc", 0.52, 0.012, 0.5, 0.6289),
        TaskScore("lambada_openai", 2_000, "acc", 0.1, 0.004, 0.0, 0.3256),
        TaskScore("story", 2_000, "exact_match", 0.1, 0.004, None, None),
        TaskScore("blimp", 4_000, "acc", 0.7, 0.002, 0.375, None),
    ]
    assert [task.above_chance for task in found] == [False, True, True, True]
    assert not TaskScore("piqa", 1, "acc", 1.0, 0.0, 0.5, None).above_chance


def test_a_metric_of_an_answer_that_was_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(("story", "generate_until", 1, {}))
    strict = {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.02}
    flexible = {"exact_match,flexible-extract": 0.2, "exact_match_stderr,flexible-extract": 0.03}
    record["results"]["story"] = {"alias": "story", **strict, **flexible}
    (found,) = scores(monkeypatch, record, "story").tasks
    assert (found.metric, found.value, found.error) == ("exact_match", 0.1, 0.02)
    with pytest.raises(UsageError, match="easy is a tag of several tasks"):
        scores(monkeypatch, record, "easy")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no task piqua") as caught:
        scores(monkeypatch, recorded(), "piqua")
    assert "piqa" in caught.value.why
    with pytest.raises(NoNetwork) as unreachable:
        scores(monkeypatch, ConnectionError("Couldn't reach 'baber/piqa' on the Hub"), "piqa")
    assert "baber/piqa" in unreachable.value.why
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="not installed") as absent:
        run_tasks(Path("folder"), bpe.byte_tokenizer(), ["piqa"], CPU)
    assert absent.value.fix == install_command("eval")

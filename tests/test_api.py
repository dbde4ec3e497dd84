"""llamactl in Python: the stages as functions, typed, lazy, and without a word of their own."""

import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llamactl
from llamactl.corpus.dataset import DatasetDir
from llamactl.errors import OutOfSpace, UsageError
from llamactl.inference.generate import Request
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Evaluated, Stepped, Validated

SHAPE = {"model": {"n_layers": 1, "dim": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 48, "context": 32}}
SETTINGS = SHAPE | {"train.tokens_per_step": 256, "train.precision": "fp32", "train.prompts": []}


@pytest.fixture
def trained(home: Path, documents: list[str], capfd: pytest.CaptureFixture[str]) -> llamactl.Training:
    dataset = llamactl.prepare(documents=documents[:20], name="mine", tokenizer="bpe:300")
    run = llamactl.train(dataset, tokens=20_000, run="first", settings=SETTINGS, anyway=True)
    events = list(run)
    assert [type(event) for event in events].count(Stepped) == 79
    assert any(isinstance(event, Validated) for event in events)
    assert isinstance(events[-1], Evaluated)
    assert capfd.readouterr() == ("", "")
    return run


def test_documents_become_a_model_that_writes(trained: llamactl.Training, documents: list[str]) -> None:
    model = llamactl.load(trained.name)
    text = llamactl.generate(model, "The people", max_new_tokens=5, temperature=0)
    assert text == llamactl.generate(trained.name, "The people", max_new_tokens=5, temperature=0)
    with torch.inference_mode():
        assert model.model(torch.tensor([[1, 2]])).shape == (1, 2, 384)
    on_split = llamactl.evaluate(model, dataset=trained.dataset)
    assert on_split.loss == llamactl.evaluate("first", dataset="mine").loss
    assert llamactl.evaluate(model, documents[30:32]).bits_per_byte > 1


def test_a_run_is_one_of_the_command_line(trained: llamactl.Training) -> None:
    run = RunDir.from_name("first")
    assert run.config() == trained.config
    assert run.plan_path.exists()
    assert not [event for event in trained if isinstance(event, Stepped)]  # it is over


def test_it_is_resumed_where_the_loop_was_left(home: Path, documents: list[str]) -> None:
    dataset = llamactl.prepare(documents=documents[:20], name="mine", tokenizer="bpe:300")
    settings = SETTINGS | {"train.save_every": 1}
    run = llamactl.train(dataset, tokens=4_096, run="left", settings=settings, anyway=True)
    for event in run:
        if event.step == 5:
            break
    steps = [event.step for event in run if isinstance(event, Stepped)]
    assert steps[0] <= 6
    assert steps[-1] == 16


def test_a_resumed_run_that_would_be_another_one_writes_nothing(home: Path, documents: list[str]) -> None:
    dataset = llamactl.prepare(documents=documents[:20], name="mine", tokenizer="bpe:300")
    settings = SETTINGS | {"train.save_every": 1}
    for event in llamactl.train(dataset, tokens=4_096, run="left", settings=settings, anyway=True):
        if event.step == 5:
            break
    run = RunDir.from_name("left")
    before = {path: path.read_bytes() for path in (run.config_path, run.plan_path)}
    other = llamactl.prepare(documents=documents[20:40], name="other", tokenizer="bpe:300")
    with pytest.raises(UsageError, match=r"optim\.lr"):
        list(llamactl.train(dataset, tokens=4_096, run="left", settings=settings | {"optim.lr": 0.5}, anyway=True))
    with pytest.raises(llamactl.UserError, match="not the one that this run was trained on"):
        list(llamactl.train(other, tokens=4_096, run="left", settings=settings, anyway=True))
    assert before == {path: path.read_bytes() for path in before}
    assert list(llamactl.train(dataset, tokens=4_096, run="left", settings=settings, anyway=True))


def test_the_same_line_resumes_a_run_that_chose_for_itself(home: Path, documents: list[str]) -> None:
    """By a time, and from a model that has trained on since: the run keeps what it chose."""
    dataset = llamactl.prepare(documents=documents[:20], name="mine", tokenizer="bpe:300")
    settings = SETTINGS | {"train.save_every": 2}
    base = [event.step for event in llamactl.train(dataset, tokens=1_024, run="base", settings=settings) if event.step]
    assert base[-1] == 4
    unshaped = {name: value for name, value in settings.items() if name != "model"}
    asked: dict[str, Any] = {"time": "60s", "run": "child", "init_from": "base", "settings": unshaped}
    first = llamactl.train(dataset, **asked)
    for event in first:
        if event.step == 5:
            break
    assert list(llamactl.train(dataset, tokens=2_048, run="base", settings=settings, anyway=True))
    again = llamactl.train(dataset, **asked)
    assert again.config == RunDir.from_name("child").config() == first.config
    assert again.config.train.init_from == "base@4"
    longer = llamactl.train(dataset, tokens=first.config.train.tokens + 256, run="child")
    assert longer.config.train.tokens == first.config.train.tokens + 256
    with pytest.raises(UsageError, match="no 10m"):
        llamactl.train(dataset, preset="10m", run="child")


def test_damaged_data_is_no_success(trained: llamactl.Training) -> None:
    shard = next((DatasetDir.from_name("mine").path / "val").glob("*.npy"))
    ids, stamp = np.load(shard), shard.stat()
    ids[5] += 1
    np.save(shard, ids)
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(llamactl.UserError, match="damaged"):
        llamactl.evaluate(trained.name)


def test_a_model_is_measured_on_the_text_of_its_run(trained: llamactl.Training, documents: list[str]) -> None:
    own = llamactl.evaluate(trained.name).loss
    llamactl.prepare(documents=documents[20:40], name="newer", tokenizer=str(DatasetDir.from_name("mine").path))
    assert llamactl.evaluate(trained.name).loss == own != llamactl.evaluate(trained.name, dataset="newer").loss


def test_a_string_is_one_text(trained: llamactl.Training, documents: list[str]) -> None:
    assert llamactl.evaluate(trained.name, documents[30]).loss == llamactl.evaluate(trained.name, [documents[30]]).loss
    asked: dict[str, Any] = {"max_new_tokens": 40, "seed": 1}
    assert llamactl.generate(trained.name, "The", stop="xyzzy", **asked) == llamactl.generate(trained.name, "The", **asked)


def test_unnamed_runs_of_the_same_second_are_two(home: Path) -> None:
    dataset = llamactl.prepare(documents=["a b c " * 500, "d e f " * 500], name="small", tokenizer="bytes")
    made = [llamactl.train(dataset, tokens=2_000, settings=SETTINGS, anyway=True).name for _ in range(3)]
    assert len(set(made)) == 3


def test_other_documents_are_not_taken_for_those_of_before(home: Path, documents: list[str]) -> None:
    llamactl.prepare(documents=documents[:10], name="mine", tokenizer="bytes")
    llamactl.prepare(documents=documents[:10], name="mine", tokenizer="bytes")
    with pytest.raises(llamactl.UserError):
        llamactl.prepare(documents=documents[10:20], name="mine", tokenizer="bytes")


def test_files_are_a_source_too(home: Path, corpus: Path) -> None:
    dataset = llamactl.prepare(corpus, name="files", tokenizer="bytes", val_fraction=0.2)
    assert dataset.info.total("val", "documents") > 5


def test_mistakes_are_told_as_on_the_command_line(home: Path) -> None:
    with pytest.raises(UsageError, match="a source or documents"):
        llamactl.prepare()
    with pytest.raises(llamactl.UserError, match="no dataset"):
        llamactl.train(tokens=100)
    dataset = llamactl.prepare(documents=["a b c " * 50, "d e f " * 50], name="small", tokenizer="bytes")
    with pytest.raises(UsageError, match="exclude each other"):
        llamactl.train(dataset, tokens=100, time="10m")
    with pytest.raises(UsageError, match=r"optim\.learning_rate"):
        llamactl.train(dataset, settings={"optim.learning_rate": 1})
    with pytest.raises(UsageError, match="no setting 'lr'") as refused:
        llamactl.train(dataset, settings={"lr": 1e-3})
    assert "optim.lr" in refused.value.why
    with pytest.raises(UsageError, match="exclude each other"):
        llamactl.train(dataset, preset="tiny", init_from="nosuch")
    with pytest.raises(UsageError, match="-1 new tokens"):
        Request(("a",), -1)
    with pytest.raises(llamactl.UserError, match="no run 'nosuch'"):
        llamactl.load("nosuch")
    with pytest.raises(AttributeError, match="nosuch"):
        llamactl.nosuch  # noqa: B018


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = llamactl.prepare(documents=["a b c " * 50, "d e f " * 50], name="small", tokenizer="bytes")
    monkeypatch.setattr("llamactl.planning.plan.free_memory", lambda _: 10_000_000)
    with pytest.raises(OutOfSpace, match="memory"):
        llamactl.train(dataset, preset="tiny", tokens=2_000)


def test_a_time_chooses_size_and_budget(home: Path, documents: list[str]) -> None:
    dataset = llamactl.prepare(documents=documents, name="mine", tokenizer="bpe:300")
    run = llamactl.train(dataset, time="60s")
    assert run.config.preset == "tiny"
    assert 0 < run.config.train.tokens <= 4 * dataset.info.total("train", "tokens")


def test_import_is_quick_and_imports_nothing_heavy() -> None:
    lines = "import sys, llamactl; assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules); dir(llamactl)"
    taken = []
    for _ in range(5):  # of which one is not interrupted by other work
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", lines], capture_output=True, text=True, check=True)
        (line,) = [line for line in done.stderr.splitlines() if line.endswith("| llamactl")]
        taken.append(int(line.split("|")[1]))
    assert min(taken) < 50_000  # microseconds


def test_help_reads_as_a_guide() -> None:
    text = pydoc.plain(pydoc.render_doc(llamactl))
    for name in llamactl.__all__:
        assert name in text
        assert getattr(llamactl, name).__doc__
    assert "iterate it for events" in text


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    """The snippets of docs/python.md, one after another."""
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")
    script = tmp_path / "page.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "optim.lr" in done.stdout

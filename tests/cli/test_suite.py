"""llamactl eval --suite: what it prints and keeps, and where it is shown."""

import json
from pathlib import Path

import pytest
import torch

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import build_config
from llamactl.errors import DataError
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.runs.scores import ScoredTest, SuiteScores, keep_scores, newest_scores, read_scores
from llamactl.tokenizer import bpe
from tests.cli.inline import type_in
from tests.conftest import make_dataset
from tests.export.test_exports import SHAPE

TESTS = ["minimal pairs", "order", "word", "ending", "cloze", "completion"]


@pytest.fixture
def saved(home: Path, corpus: Path) -> RunDir:
    """A dataset of bytes, and a run with a checkpoint that was not trained."""
    make_dataset(home / "data" / "d", corpus, tokenizer="bytes")
    torch.manual_seed(0)
    run, config = RunDir.from_name("r"), build_config([{"data": {"name": "d"}, "train": {"tokens": 90, "tokens_per_step": 9}}])
    run.start(config, {"command": "llamactl train"})
    taken = take_snapshot(Llama(SHAPE), [])
    checkpoint_io.save_checkpoint(run.checkpoint(7), taken, SHAPE, bpe.byte_tokenizer(), State(step=7, tokens=9, seconds=1.0))
    return run


def scores(step: int = 7, digest: str = "d", accuracy: float = 0.5) -> SuiteScores:
    test = ScoredTest(name="cloze", items=9, accuracy=accuracy, error=None, chance=0.2, bigram=None)
    return SuiteScores(step=step, data="d, val", digest=digest, tests=(test,))


def test_the_scores_are_printed_and_kept_in_the_run(saved: RunDir) -> None:
    shown = type_in("eval", "--suite", "small")
    assert shown.code == 0, shown
    lines = shown.out.splitlines()
    assert lines[0].split()[:4] == ["test", "score", "chance", "bigrams"]
    assert [line.split("  ")[0] for line in lines[1:]] == TESTS
    assert "questions about d, val" in shown.err
    (kept,) = read_scores(saved)
    assert (kept.step, kept.data, [test.name for test in kept.tests]) == (7, "d, val", TESTS)
    again = type_in("eval", "--suite", "small", "--json")
    record = json.loads(again.out)
    assert record["suite"] == json.loads(saved.scores_path.read_text())["scores"][0] == kept.model_dump(mode="json")
    assert record["results"] == {}
    assert set(record["suite"]["tests"][0]) == {"name", "items", "accuracy", "error", "chance", "bigram"}
    assert len(read_scores(saved)) == 1
    assert "minimal pairs" in type_in("runs", "show", "r").err
    assert json.loads(type_in("runs", "show", "r", "--json").out)["scores"] == record["suite"]


def test_what_is_not_about_held_out_text_is_not_kept(saved: RunDir, corpus: Path) -> None:
    files = [str(path) for path in sorted(corpus.glob("*.txt"))[:12]]
    for words in (["--limit", "20"], ["--split", "train", "--limit", "20"], [*files, "--limit", "20"]):
        record = json.loads(type_in("eval", *words, "--suite", "small", "--json").out)
        assert record["suite"]["tests"][0]["items"] == 60
        assert (record["suite"]["tests"][0]["bigram"] is None) == (len(words) > 2)
    assert not saved.scores_path.exists()


def test_files_of_one_name_have_a_row_each(saved: RunDir, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)  # a longer path would take several lines
    files = [Path(folder) / "q.jsonl" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text('{"context": "The", "choices": ["people", "xqz"], "answer": 0}\n')
    answer = type_in("eval", *(word for file in files for word in ("--questions", str(file))))
    assert all(str(file) in answer.err for file in files)
    assert answer.err.count("not significantly above chance") == 2


def test_too_little_text_and_options_without_effect_are_refused(saved: RunDir, home: Path) -> None:
    (home / "a.txt").write_text("A few words.")
    answer = type_in("eval", str(home / "a.txt"), "--suite", "small")
    assert (answer.code, "too little text" in answer.err) == (3, True)
    assert type_in("eval", "--suite", "large").code == 2
    assert "--suite" in type_in("eval", "--limit", "3").err


def test_scores_that_cannot_be_kept_are_printed_all_the_same(saved: RunDir) -> None:
    saved.scores_path.mkdir()
    answer = type_in("eval", "--suite", "small")
    assert answer.code == 0
    assert "not kept" in answer.err
    assert "cloze" in answer.out


def test_scores_are_kept_by_step_and_text(home: Path) -> None:
    run = RunDir.from_name("r")
    run.path.mkdir(parents=True)
    assert newest_scores(run) is None
    for each in (scores(9), scores(7), scores(9, "other"), scores(7, accuracy=0.75)):
        keep_scores(run, each)
    assert [(each.step, each.digest) for each in read_scores(run)] == [(7, "d"), (9, "d"), (9, "other")]
    assert read_scores(run)[0].tests[0].accuracy == 0.75
    assert newest_scores(run) == scores(9, "other")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 2, "scores": []}', '{"format": 1, "scores": [{}]}'])
def test_a_damaged_file_of_scores_is_named(saved: RunDir, damage: str) -> None:
    saved.scores_path.write_text(damage)
    with pytest.raises(DataError, match=r"scores\.json"):
        read_scores(saved)
    answer = type_in("verify", "r")
    assert answer.code == 3
    assert "scores.json" in answer.out + answer.err

"""A trained checkpoint in use, as people type it: evaluated, read, exported, talked to."""

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import TINY, run
from tests.conftest import make_dataset

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(home: Path, corpus: Path) -> Path:
    make_dataset(home / "data" / "addresses", corpus)
    run(f"train --tokens 2048 --run a {TINY} --set train.eval_tokens=1000000 --set train.micro_batch=1")
    return home


def test_eval_is_trainings_loss_and_reads_any_text(trained: Path) -> None:
    logged = [json.loads(line) for line in (trained / "runs" / "a" / "metrics.jsonl").read_text().splitlines()]
    validation = [row for row in logged if row["kind"] == "validation"][-1]
    record = json.loads(run("eval --json").stdout)
    found = record["results"]["addresses, val"]
    assert found["loss"] == pytest.approx(validation["loss"], abs=0.01)  # training computed in bf16 where there is bf16
    assert found["loss_error"] > 0
    assert record["sha256"]["model.safetensors"]
    (trained / "a.txt").write_text("The people of the United States.\n\n" * 20)
    said = " ".join(run("eval", str(trained / "a.txt")).stderr.split())
    assert "nats per token" in said
    assert "bits per byte" in said
    (trained / "q.jsonl").write_text('{"context": "The", "choices": ["people", "xqz"], "answer": 0}\n' * 3)
    assert "chance 50.0%" in " ".join(run("eval --questions", str(trained / "q.jsonl")).stderr.split())
    (trained / "q.jsonl").write_text("{}\n")
    assert "line 1" in run("eval --questions", str(trained / "q.jsonl"), code=3).stderr


def test_surprise_in_the_terminal_and_as_a_page(trained: Path) -> None:
    done = run("surprise", "The people [bold]\x1b[2J")
    assert "The people [bold]" in done.stdout
    assert "\x1b[2J" not in done.stdout
    assert "bits per byte" in done.stderr
    page = trained / "out" / "page.html"
    assert run("surprise --run a@4 --compare a@2 --out", str(page), "The people").stdout.strip() == str(page)
    assert "it was" in page.read_text()
    rows = [json.loads(line) for line in run("surprise --json", "The people").stdout.splitlines()]
    assert "".join(row["text"] for row in rows) == "The people"
    assert "no text" in run("surprise", "", code=2).stderr


def test_exports_are_written_and_say_where(trained: Path) -> None:
    out = trained / "exports"
    written = {
        "gguf a --type q8_0": "a-step4-q8_0.gguf",
        "hf a@2": "a-step2-bf16",
        "web a --checkpoints 2": "a-step4-int8.html",
    }
    for words, name in written.items():
        done = run(f"export {words} --out", str(out))
        assert done.stdout.strip() == str(out / name)
        assert "verified against the checkpoint" in done.stderr
    assert (out / "a-step4-q8_0.Modelfile").exists()
    assert (out / "a-step2-bf16" / "README.md").exists()


def test_sampling_a_file_of_prompts(trained: Path) -> None:
    (trained / "prompts").write_text("The people\n\nA much longer beginning of a text\n")
    words = "sample --n 2 --json --log-probabilities --max-new-tokens 4 --stop zzz"
    words += " --repetition-penalty 1.1 --weights int8 --prompts"
    rows = [json.loads(line) for line in run(words, str(trained / "prompts")).stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["The people"] * 2 + ["A much longer beginning of a text"] * 2
    assert all(len(row["tokens"]) == len(row["log_probabilities"]) <= 4 for row in rows)
    assert "will not see its beginning" in run("sample --max-new-tokens 80 --temperature 0", "The").stderr
    assert "no prompt" in run("sample", code=2).stderr

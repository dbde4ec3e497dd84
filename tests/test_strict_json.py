"""JSON that any strict parser reads: `records.to_json` is the one writer, and what is not finite is null in it."""

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, build_config
from llamactl.inference.generate import generate_samples
from llamactl.metrics.monitor import record_events
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.storage.records import to_json
from llamactl.tokenizer import bpe
from llamactl.training.events import Event, Replayed, Skipped, Stepped, Validated
from tests.cli.inline import type_in
from tests.conftest import make_dataset
from tests.export.test_exports import SHAPE
from tests.test_layers import MODULES, name_of

SETTINGS = ("train.tokens_per_step=64", "train.device=cpu", "model.context=32", "model.n_layers=1", "train.sample_tokens=2")
TRAINED = ["train", "--preset", "tiny", "--tokens", "128", *(f"--set={setting}" for setting in SETTINGS), "--json"]
MOMENT = {"tokens": 9, "flops": 1e9, "seconds": 1.0}
SPEED = {"lr": 0.1, "grad_norm": None, "tokens_per_second": None, "mfu": None, "memory": None}


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strict(text: str) -> list[Any]:
    """The values of a text of JSON: one that is indented, or one a line."""
    try:
        return [json.loads(text, parse_constant=refuse)]
    except json.JSONDecodeError:
        return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def used(home: Path, corpus: Path) -> Path:
    """A dataset, and a run whose log has numbers that are none, and a checkpoint."""
    make_dataset(home / "data" / "d", corpus, tokenizer="bytes")
    torch.manual_seed(0)
    run, config = RunDir.from_name("r"), build_config([{"data": {"name": "d"}, "train": {"tokens": 90, "tokens_per_step": 9}}])
    run.start(config, {"command": "llamactl train"})
    model = Llama(SHAPE)
    state = State(step=7, tokens=9, seconds=1.0, validation_loss=5.0)
    checkpoint_io.save_checkpoint(run.checkpoint(7), take_snapshot(model, []), SHAPE, bpe.byte_tokenizer(), state)
    rows = [{"kind": "step", "step": n, **MOMENT, **SPEED, "loss": None if n % 3 == 1 else 5.0} for n in range(1, 8)]
    rows += [{"kind": "validation", "step": 7, **MOMENT, "loss": None, "bits_per_byte": None}]
    rows += [{"kind": "skipped", "step": 4, **MOMENT, "loss": None, "grad_norm": None}]
    rows += [{"kind": "spike", "step": 5, **MOMENT, "loss": None, "usual": None}]
    rows += [{"kind": "replayed", "step": 6, **MOMENT, "steps": 1, "different": 1, "largest": None}]
    lines = [json.dumps(row) + "\n" for row in rows]
    lines[2] = (
        lines[2].replace('"loss": 5.0', '"loss": NaN').replace('"mfu": null', '"mfu": Infinity')
    )  # as it was written once
    run.metrics_path.write_text("".join(lines))
    run.samples_path.write_text(json.dumps({"kind": "sample", "step": 7, **MOMENT, "prompt": "a", "text": "b\u2028"}) + "\n")
    return home


COMMANDS = {
    "eval, one document": ["eval", "--text-column", "text", "{home}/one.txt", "--json"],
    "eval of stdin": ["eval", "-", "--json"],
    "eval of the dataset": ["eval", "--json"],
    "eval of the suite": ["eval", "--suite", "small", "--limit", "20", "--json"],
    "eval of questions": ["eval", "--questions", "{home}/q.jsonl", "--json"],
    "surprise": ["surprise", "a 😀", "--json"],
    "surprise since itself, and a page": ["surprise", "a", "--compare", "r", "--json", "--out", "{home}/page.html"],
    "sample": ["sample", "a", "--n", "2", "--max-new-tokens", "3", "--json", "--log-probabilities"],
    "plot-loss": ["plot-loss", "--json"],
    "runs list": ["runs", "list", "--json"],
    "runs show": ["runs", "show", "r", "--json"],
    "runs show samples": ["runs", "show", "r", "--samples", "--json"],
    "runs diff": ["runs", "diff", "r", "r", "--json"],
    "watch": ["watch", "r", "--json"],
    "verify": ["verify", "d", "--json"],
    "config": ["config", "--json"],
    "plan": ["plan", "--data", "d", "--preset", "tiny", "--tokens", "10k", "--json"],
    "train": TRAINED,
    "prepare": ["prepare", "{home}/texts", "--tokenizer", "bytes", "--name", "new", "--json"],
    "bench decode": ["bench", "decode", "--preset", "tiny", "--new", "8", "--batches", "1", "--device", "cpu", "--json"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_prints_strict_json(words: list[str], used: Path) -> None:
    (used / "one.txt").write_text("The people of the United States.")
    (used / "q.jsonl").write_text('{"context": "The", "choices": ["a", "b"], "answer": 0}\n')
    (used / "texts").mkdir()
    for number in range(3):
        (used / "texts" / f"{number}.txt").write_text(f"A text of a few words, number {number}. " * 30)
    answer = type_in(*(word.format(home=used) for word in words), stdin=b"The people")
    assert answer.code == 0, answer
    assert strict(answer.out)
    for log in (used / "runs").glob("2*/*.jsonl"):
        strict(log.read_text())


def test_what_is_not_finite_is_null(used: Path) -> None:
    (found,) = strict(type_in("eval", "-", "--json", stdin=b"The people").out)
    assert found["results"]["-"]["loss_error"] is None
    assert found["results"]["-"]["loss"] > 0
    (shown,) = strict(type_in("runs", "list", "--json").out)
    assert shown["validation_loss"] is None
    assert (
        to_json({"a": [math.nan, (math.inf, -math.inf)], "b": {"c": 1e400}}) == '{"a": [null, [null, null]], "b": {"c": null}}'
    )


def test_a_log_of_numbers_that_are_none_is_strict_json(home: Path) -> None:
    run = RunDir.from_name("r")
    run.start(Config(), {})
    moment = (1, 9, math.inf, 1.0)
    events: list[Event] = [
        Stepped(*moment, loss=math.nan, lr=0.1, grad_norm=math.inf, tokens_per_second=1.0, mfu=math.nan, memory=0),
        Skipped(*moment, loss=math.nan, grad_norm=-math.inf), Validated(*moment, loss=math.inf, bits_per_byte=math.nan),
        Replayed(*moment, steps=1, different=1, largest=math.nan),
    ]  # fmt: skip
    list(record_events(iter(events), run))
    rows = strict(run.metrics_path.read_text())
    assert [row["kind"] for row in rows] == ["step", "skipped", "validation", "replayed"]
    assert rows[0]["loss"] is rows[0]["flops"] is rows[1]["grad_norm"] is rows[2]["bits_per_byte"] is None
    assert len(run.rows()) == 4


Rows = Callable[[list[dict[str, Any]]], list[Any]]


def step(number: int, loss: Any) -> dict[str, Any]:
    return {"kind": "step", "step": number, **MOMENT, **SPEED, "loss": loss}


LOGS: dict[str, tuple[list[Any], int]] = {
    "nothing": ([], 3),
    "one row": ([step(1, 5.0)], 0),
    "one row, and it is null": ([step(1, None)], 3),
    "only nulls": ([step(n, None) for n in range(1, 9)], 3),
    "NaN as Python writes it": ([step(1, 5.0), step(2, math.nan), step(3, -math.inf)], 0),
    "the last is null": ([step(1, 5.0), step(2, 4.0), step(3, None)], 0),
    "huge": ([step(1, 1e308), step(2, 1e308), step(3, 5.0)], 0),
    "all huge": ([step(n, 1e308) for n in range(1, 9)], 3),
    "a null on the axis": ([step(1, 5.0) | {"tokens": 9, "flops": None}, step(2, 5.0)], 0),
    "a null validation": ([step(1, 5.0), {"kind": "validation", "step": 1, **MOMENT, "loss": None, "bits_per_byte": None}], 0),
    "no loss": ([{"kind": "step", "step": 1, **MOMENT}], 3),
    "no tokens": ([{"kind": "step", "step": 1, "loss": 5.0, "flops": 1.0, "seconds": 1.0}], 3),
    "a text for a loss": ([step(1, "5.0")], 3),
    "equal losses": ([step(n, 5.0) for n in range(1, 9)], 0),
    "another kind alone": ([{"kind": "saved", "step": 1, **MOMENT, "path": "x"}], 3),
}


@pytest.mark.parametrize(("rows", "code"), LOGS.values(), ids=LOGS)
@pytest.mark.parametrize("axis", ["tokens", "flops"])
def test_plot_loss_of_any_log(rows: list[Any], code: int, axis: str, used: Path) -> None:
    RunDir.from_name("r").metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = type_in("plot-loss", "--x", axis, "--out", str(used / "a.svg"), "--json")
    expected = 0 if rows and "tokens" not in rows[0] and axis == "flops" else code
    assert answer.code == expected, answer
    if not expected:
        assert all(run["loss"] is not None for run in strict(answer.out)[0]["runs"])
        assert "nan" not in answer.err
    for words in (["runs", "list"], ["runs", "show", "r"], ["runs", "diff", "r", "r"], ["watch", "r"], ["report", "r"]):
        assert type_in(*words).code in (0, 3)


@pytest.mark.parametrize(
    ("out", "code"),
    [
        ("loss.png", 0), ("new/folders/loss.pdf", 0), ("LOSS.PNG", 0), ("file/loss.png", 4), ("file/below/loss.png", 4),
        ("folder.png", 4), ("loss.xlsx", 2), ("loss", 2), ("", 2), (".png", 2), ("folder.png/", 4), ("fixed/loss.png", 4),
        ("n" * 300 + ".png", 4), ("link.svg", 0),
    ],
)  # fmt: skip
def test_plot_loss_writes_a_picture_or_says_why_not(out: str, code: int, used: Path) -> None:
    (used / "file").write_text("mine")
    (used / "folder.png").mkdir()
    (used / "precious").write_text("mine")
    (used / "link.svg").symlink_to("precious")
    (used / "fixed").symlink_to("/proc/self")
    answer = type_in("plot-loss", "r", "--out", f"{used}/{out}" if out else "")
    assert answer.code == code, answer
    assert (used / "file").read_text() == (used / "precious").read_text() == "mine"
    if not code:
        assert (used / out).stat().st_size > 1_000


def test_a_model_whose_scores_are_none_is_named(used: Path) -> None:
    from llamactl.errors import DataError
    from llamactl.inference.generate import Request

    model = Llama(SHAPE)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.inf)
    with pytest.raises(DataError, match="not numbers"):
        list(generate_samples(model, bpe.byte_tokenizer(), Request(("a",), max_new_tokens=3)))


# What is a format of its own: safetensors' header, Hugging Face's index, a script element, which is strict too.
OTHER_WRITERS = {
    "llamactl.storage.records",
    "llamactl.checkpoint.safetensors_io",
    "llamactl.checkpoint.snapshot",
    "llamactl.report.page",
    "llamactl.escape",
}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_else_writes_json(path: Path) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)}
    assert name_of(path) in OTHER_WRITERS or not calls & {"json.dumps", "dumps", "json.dump", "dump_json"}

"""What `sample` says of the checkpoint that it takes: its loss, on which text, and a better one where there is one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.checkpoint.format import State
from llamactl.cli.sample import describe_better, describe_loss
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.export.huggingface import export_hf
from llamactl.export.web import export_web, read_page
from llamactl.metrics.evaluation import evaluate_at_the_end
from llamactl.metrics.monitor import record_events
from llamactl.runs.run_dir import RunDir
from llamactl.training.trainer import train_run
from tests.cli.inline import type_in

Configured = Callable[..., tuple[Config, World]]


@pytest.fixture
def trained(configured: Configured, dataset: Dataset) -> RunDir:
    """A run of 20 steps with checkpoints at 10 and 20, evaluated on the whole split."""
    split = dataset.info.total("val", "tokens")
    config, world = configured(
        train={"tokens": split, "tokens_per_step": -(-split // 20), "eval_every": 10, "save_every": 10, "eval_tokens": 64}
    )
    run = RunDir.from_name("a")
    run.path.mkdir(parents=True)
    run.start(config, {}, False)
    events = train_run(config, dataset, run, world, 1e12)
    list(record_events(evaluate_at_the_end(events, run, dataset, config, world.device), run))
    return run


def said(*words: str) -> str:
    return " ".join(type_in("sample", "The", "--max-new-tokens", "1", *words).err.split())


def test_the_loss_names_what_it_was_measured_on(trained: RunDir) -> None:
    first, last = trained.steps()
    evaluation = trained.rows()[-1]
    assert evaluation["kind"] == "evaluation"
    assert f"at step {last}, validation loss {evaluation['loss']:.3f} ± {evaluation['loss_error']:.3f}" in said()
    # Exports name the same one, in the model card and in the page.
    card = export_hf(trained.checkpoint(last), trained.path / "out", "bf16") / "README.md"
    assert f"| validation loss | {evaluation['loss']:.4f} nats per token |" in card.read_text()
    about, _ = read_page(export_web(trained.checkpoint(last), trained.path / "out", "int8", 1).read_text())
    assert about["checkpoints"][-1]["loss"] == evaluation["loss"]
    assert f"at step {first}, validation loss" in said("--run", f"a@{first}")
    assert "on 64 held-out tokens" in said("--run", f"a@{first}")


def test_a_better_checkpoint_is_named(trained: RunDir, tmp_path: Path) -> None:
    first, last = trained.steps()
    assert "overfits" not in said()
    path = trained.checkpoint(first) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"validation_loss": 1.5}, indent=1) + "\n")
    assert f"It overfits: step {first} had 1.500 on the same held-out text. Better: --run a@{first}" in said()
    # Of a run in another folder, the name means nothing here.
    elsewhere = shutil.copytree(trained.path, tmp_path / "other" / "runs" / "zz")
    better = elsewhere / "checkpoints" / trained.checkpoint(first).name
    assert f"Better: --run {better}" in said("--run", str(elsewhere / "checkpoints" / trained.checkpoint(last).name))


def test_a_checkpoint_outside_of_a_run_has_no_others(trained: RunDir, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.checkpoint(trained.steps()[-1]), tmp_path / "elsewhere" / "model")
    assert "overfits" not in said("--run", str(folder))
    assert "model at step" in said("--run", str(folder))


def test_a_folder_below_the_root_is_of_no_run() -> None:
    state = State(step=1, tokens=1, seconds=1.0, validation_loss=2.0)
    for folder in ("/", "/mnt", "/mnt/model"):
        assert describe_better(Path(folder), state) == ""
        assert "2.000" in describe_loss(Path(folder), state)

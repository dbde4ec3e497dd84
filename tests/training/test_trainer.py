"""The training loop: it learns, it is reproducible to the bit, and bad numbers never reach the weights."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from llamactl.checkpoint import format as checkpoint_format
from llamactl.config.schema import Config
from llamactl.corpus.batches import Batches, Windows
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.distributed.context import World
from llamactl.errors import OutOfSpace
from llamactl.metrics.monitor import record_events
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.runs.run_dir import RunDir
from llamactl.training import trainer, validation
from llamactl.training.build import build_objective
from llamactl.training.events import Degraded, Event, Resumed, Sampled, Saved, Skipped, Stepped, Validated
from llamactl.training.gradients import accumulate_gradients
from llamactl.training.trainer import Trainer, train_run
from llamactl.training.validation import sample_prompt, validate_model

Configured = Callable[..., tuple[Config, World]]
RATE = 1e11

# Losses of the first 20 steps of tests/conftest.py's model. A change that moves them changes what is computed:
# say so in the commit that changes them.
GOLDEN: list[float] = json.loads((Path(__file__).parent / "golden_losses.json").read_text())


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped)]


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    path = run.checkpoint(run.steps()[-1])
    tensors = {**load_file(path / checkpoint_format.WEIGHTS), **load_file(path / checkpoint_format.OPTIMIZER)}
    return {name: tensor.clone() for name, tensor in tensors.items()}  # not a view of the file, which tests damage


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_losses_are_the_golden_ones(configured: Configured, dataset: Dataset) -> None:
    config, world = configured()
    events = list(train_run(config, dataset, RunDir.from_name("a"), world, RATE))
    assert len(losses(events)) == 20
    assert losses(events) == pytest.approx(GOLDEN, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_can_learn_a_batch_by_heart(optimizer: str, configured: Configured, dataset: Dataset) -> None:
    config, world = configured(optim={"name": optimizer, "lr": 0.01}, train={"tokens_per_step": 64})
    made = Trainer(config, dataset, RunDir.from_name("a"), world, RATE)
    made.max_steps = 150
    batch = made.batches.micro_batches(0, 2)
    made.batches.micro_batches = lambda step, most: batch  # type: ignore[method-assign]
    curve = losses([event for _ in range(150) for event in made.train_step()])
    assert curve[0] > 6
    assert curve[-1] < 0.05


def test_it_learns_english(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"tokens": 60_000, "tokens_per_step": 1024})
    events = list(train_run(config, dataset, RunDir.from_name("a"), world, RATE))
    found = [event for event in events if isinstance(event, Validated)]
    assert found[-1].loss < found[0].loss < math.log(512)
    assert found[-1].bits_per_byte < 3.0


@pytest.mark.parametrize("stop", [1, 7, 14])
def test_resuming_is_exact(stop: int, configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"save_every": 7, "eval_every": 7, "keep_last": 9})
    whole, stopped = RunDir.from_name("whole"), RunDir.from_name("stopped")
    reference = list(train_run(config, dataset, whole, world, RATE))
    first = train_run(config, dataset, stopped, world, RATE)
    for event in first:
        if isinstance(event, Saved) or (isinstance(event, Stepped) and event.step == stop):
            break
    first.close()
    again = list(train_run(config, dataset, stopped, world, RATE))
    assert_equal(weights(whole), weights(stopped))
    assert losses(again) == losses(reference)[-len(losses(again)) :]
    validations = [[(e.step, e.loss) for e in events if isinstance(e, Validated)] for events in (reference, again)]
    assert validations[0][-1] == validations[1][-1]


def test_accumulation_changes_nothing_but_rounding(configured: Configured, dataset: Dataset) -> None:
    curves = []
    for micro_batch in (8, 3, 1):
        config, world = configured(train={"micro_batch": micro_batch})
        curves.append(losses(list(train_run(config, dataset, RunDir.from_name(f"m{micro_batch}"), world, RATE))))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert curves[2] == pytest.approx(curves[0], abs=1e-4)


def test_the_loss_is_the_mean_over_all_tokens_of_the_step(configured: Configured, dataset: Dataset) -> None:
    """The notebook counted padding; here every window is full of text, and every token counts once."""
    config, world = configured(train={"micro_batch": 3})
    model = build_objective(config, world).model
    batches = Batches(Windows(dataset.train, 32), 8, f"{dataset.info.digest} 0")
    inputs, targets, *_ = batches.micro_batches(0, 8)[0]
    assert inputs.shape == targets.shape == (8, 32)
    assert targets.max() < dataset.info.vocab_size
    expected = -model(inputs).log_softmax(-1).gather(-1, targets[..., None]).mean()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert accumulate_gradients(NextToken(model), batches.micro_batches(0, 3), world, scaler).item() == pytest.approx(
        expected.item(), abs=1e-5
    )


def test_validation_by_hand(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"eval_tokens": 10**9})
    model = build_objective(config, world).model
    windows = Windows(dataset.val, 32)
    measured = validate_model(NextToken(model), dataset, config, world)
    assert measured is not None
    loss, bits, tokens, error = measured
    inputs, targets, *_ = windows.batch(np.arange(len(windows)))
    with torch.no_grad():
        nats = F.cross_entropy(model(inputs).flatten(0, 1).double(), targets.flatten(), reduction="none")
    text = targets.flatten() != dataset.tokenizer.end
    size = len(dataset.tokenizer.decode_bytes(targets.flatten().tolist()))
    assert loss == pytest.approx(nats.mean().item(), abs=1e-5)
    assert bits == pytest.approx(nats[text].sum().item() / math.log(2) / size, abs=1e-5)
    assert tokens == targets.numel()
    of_windows = nats.view(-1, 32).mean(1)
    assert error == pytest.approx(of_windows.std(correction=1).item() / math.sqrt(len(of_windows)), rel=1e-4)


def test_a_uniform_model_has_its_known_bits_per_byte(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"eval_tokens": 10**9})
    model = build_objective(config, world).model
    nn.init.zeros_(model.lm_head.weight)
    windows = Windows(dataset.val, 32)
    measured = validate_model(NextToken(model), dataset, config, world)
    assert measured is not None
    loss, bits, *_ = measured
    targets = windows.batch(np.arange(len(windows))).targets
    tokens = (targets != dataset.tokenizer.end).sum().item()
    assert loss == pytest.approx(math.log(512), abs=1e-5)
    assert bits == pytest.approx(9 * tokens / len(dataset.tokenizer.decode_bytes(targets.flatten().tolist())))


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_never_reach_the_weights(
    where: str, bad: float, configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, world = configured()
    made = Trainer(config, dataset, RunDir.from_name("a"), world, RATE)
    list(made.train_step())
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}

    def spoil(objective: NextToken, *rest: Any) -> torch.Tensor:
        loss = accumulate_gradients(objective, *rest)
        gradient = made.model.lm_head.weight.grad
        assert gradient is not None
        gradient[3, 3] = bad if where == "gradient" else gradient[3, 3]
        return loss * bad if where == "loss" else loss

    monkeypatch.setattr(trainer, "accumulate_gradients", spoil)
    (event,) = made.train_step()
    assert isinstance(event, Skipped)
    assert not math.isfinite(event.loss) or not math.isfinite(event.grad_norm)
    assert_equal(before, made.model.state_dict())
    monkeypatch.undo()
    assert [type(event) for event in made.train_step()] == [Stepped]


def test_the_same_prompts_are_sampled_at_each_validation(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"eval_every": 10, "prompts": ["The", "A list"]})
    run = RunDir.from_name("a")
    events = list(record_events(train_run(config, dataset, run, world, RATE), run))
    assert [(e.step, e.prompt) for e in events if isinstance(e, Sampled)] == [
        (10, "The"),
        (10, "A list"),
        (20, "The"),
        (20, "A list"),
    ]
    rows = [json.loads(line) for line in run.samples_path.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["The", "A list"] * 2


def test_ranks_that_share_a_model_decode_as_many_tokens(
    configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever each of them draws: the text still ends at the end of the document."""
    config, _ = configured(train={"sample_tokens": 6})
    drawn: list[int] = []

    def decode(*_: object) -> Iterator[SimpleNamespace]:
        for token in (65, 66, dataset.tokenizer.end, *[67] * 10):
            drawn.append(token)
            yield SimpleNamespace(tokens=torch.tensor([token]))

    monkeypatch.setattr(validation, "decode_tokens", decode)
    model = Llama(config.model)
    texts = [sample_prompt(model, "The", 0, dataset, config, is_sharded) for is_sharded in (False, True)]
    assert texts[0] == texts[1] == dataset.tokenizer.decode([65, 66])
    assert len(drawn) == 3 + 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"micro_batch": 2}, 1e-4),
        ({"activation_checkpointing": "on"}, 1e-6),
        ({"precision": "bf16"}, 0.05),
        ({"precision": "fp16"}, 0.02),
    ],
)
def test_the_curve_does_not_depend_on_how_it_is_computed(
    change: dict[str, object], tolerance: float, configured: Configured, dataset: Dataset
) -> None:
    curves = []
    for name, settings in (("plain", {}), ("changed", change)):
        config, world = configured(train={**settings, "tokens": 2560})
        curves.append(losses(list(train_run(config, dataset, RunDir.from_name(name), world, RATE))))
    assert curves[0] == pytest.approx(curves[1], abs=tolerance)
    assert len(curves[0]) == 10


@pytest.mark.slow
def test_fp16_resumes_with_its_gradients_scaled_as_before(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"precision": "fp16", "save_every": 5, "eval_every": 10})
    whole, halved = RunDir.from_name("whole"), RunDir.from_name("halved")
    list(train_run(config, dataset, whole, world, RATE))
    list(islice(train_run(config, dataset, halved, world, RATE), 7))
    assert halved.steps() == [5]
    list(train_run(config, dataset, halved, world, RATE))
    assert_equal(weights(whole), weights(halved))


def test_a_full_memory_halves_the_micro_batch_and_changes_nothing_else(
    configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice too many windows at once: the run goes on with a quarter of them, and the next one remembers."""
    config, world = configured(train={"micro_batch": 8, "save_every": 10, "eval_every": 20})
    reference = losses(list(train_run(config, dataset, RunDir.from_name("roomy"), world, RATE)))
    forward = NextToken.forward

    def cramped(self: NextToken, inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, inputs, *rest)

    forgotten: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(1))
    monkeypatch.setattr(NextToken, "forward", cramped)
    events = list(train_run(config, dataset, RunDir.from_name("cramped"), world, RATE))
    assert len(forgotten) == 2, "code for more than eight shapes would not be compiled"
    assert [event.why for event in events if isinstance(event, Degraded)] == [
        "out of memory: micro-batch 4 from here on",
        "out of memory: micro-batch 2 from here on",
    ]
    assert losses(events) == pytest.approx(reference, abs=1e-4)
    shutil.rmtree(RunDir.from_name("cramped").checkpoint(20))
    events = list(train_run(config, dataset, RunDir.from_name("cramped"), world, RATE))
    assert not [event for event in events if isinstance(event, Degraded)]
    assert losses(events) == pytest.approx(reference[10:], abs=1e-4)


def test_a_memory_that_the_update_fills_is_told_and_not_repeated(
    configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, world = configured(train={"save_every": 1}, optim={"name": "adamw"})
    step = torch.optim.AdamW.step

    def full(self: torch.optim.AdamW) -> None:
        if self.state and next(iter(self.state.values()))["step"] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(OutOfSpace, match="out of memory for the update"):
        list(train_run(config, dataset, RunDir.from_name("full"), world, RATE))
    assert RunDir.from_name("full").steps()[-1] == 2


def test_another_error_is_not_taken_for_a_full_memory(
    configured: Configured, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(NextToken, "forward", broken)
    config, world = configured()
    with pytest.raises(RuntimeError, match="shapes"):
        list(train_run(config, dataset, RunDir.from_name("a"), world, RATE))


def test_a_loop_can_be_left_at_any_event(configured: Configured, dataset: Dataset) -> None:
    config, world = configured()
    assert len(list(islice(train_run(config, dataset, RunDir.from_name("a"), world, RATE), 3))) == 3


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"save_every": 10, "eval_every": 10})
    run = RunDir.from_name("a")
    list(train_run(config, dataset, run, world, RATE))
    reference = weights(run)
    (run.checkpoint(20) / checkpoint_format.WEIGHTS).write_bytes(b"")
    events = train_run(config, dataset, run, world, RATE)
    resumed = next(events)
    assert isinstance(resumed, Resumed)
    assert (resumed.step, len(resumed.damaged)) == (10, 1)
    assert not run.checkpoint(20).exists()  # it is set aside
    list(events)
    assert_equal(reference, weights(run))


def _start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llamactl", "train", *words]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=one_thread)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(home: Path, corpus: Path) -> None:
    """SIGKILL at three moments of a run of preset `tiny`: all its numbers end as those of a whole run."""
    from tests.conftest import make_dataset

    make_dataset(home / "data" / "addresses", corpus)
    words = ["--preset", "tiny", "--tokens", "24576", "--set", "train.tokens_per_step=1024", "--set", "train.save_every=3"]
    assert _start(*words, "--run", "whole").wait() == 0
    killed, whole = RunDir.from_name("killed"), RunDir.from_name("whole")
    process = _start(*words, "--run", "killed")
    for steps in (3, 9, 15):
        while process.poll() is None and (not killed.steps() or killed.steps()[-1] < steps):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process = _start("--resume", "killed")
    assert process.wait() == 0, process.stderr and process.stderr.read()
    assert_equal(weights(whole), weights(killed))
    curves = [[(row["step"], row["loss"]) for row in run.rows() if row["kind"] == "step"] for run in (whole, killed)]
    assert sorted(curves[0]) == sorted(curves[1])
    assert len(curves[0]) == 24
    assert DatasetDir.from_name("").path.name == "addresses"

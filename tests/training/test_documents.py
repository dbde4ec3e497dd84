"""Training on documents that do not see one another: the same losses in any parts, and exactly resumed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.targets import window_rule
from llamactl.distributed.context import World
from llamactl.hardware.device import Precision
from llamactl.inference.evaluate import evaluate_streams
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.planning.memory import mask_bytes
from llamactl.runs.run_dir import RunDir
from llamactl.training.build import build_batches
from llamactl.training.events import Stepped, Validated
from llamactl.training.trainer import train_run
from llamactl.training.validation import validate_model
from tests.conftest import make_dataset

Configured = Callable[..., tuple[Config, World]]
RATE = 1e11
APART = {"separate_documents": True}


@pytest.fixture
def short(tmp_path: Path, documents: list[str]) -> Dataset:
    """The sentences of the addresses as documents: several in a window."""
    folder = tmp_path / "short"
    folder.mkdir()
    sentences = "\n".join(sentence.strip().replace("\n", " ") for text in documents[:4] for sentence in text.split(","))
    (folder / "sentences.txt").write_text(sentences, "utf-8")
    return make_dataset(tmp_path / "data" / "short", folder, split="lines").open()


def losses(config: Config, dataset: Dataset, world: World, name: str) -> list[float]:
    events = train_run(config, dataset, RunDir.from_name(name), world, RATE)
    return [event.loss for event in events if isinstance(event, Stepped | Validated)]


def test_micro_batches_do_not_change_the_losses(configured: Configured, short: Dataset) -> None:
    curves = []
    for micro_batch in (8, 3):
        config, world = configured(data=APART, train={"tokens": 2560, "micro_batch": micro_batch})
        curves.append(losses(config, short, world, f"by-{micro_batch}"))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    batch = build_batches(short, config, world).micro_batches(0, 8)[0]
    assert batch.documents is not None
    assert len(batch.documents) > 1 + len(batch.inputs)
    config, world = configured(train={"tokens": 2560, "micro_batch": 8})
    assert losses(config, short, world, "mixed") != pytest.approx(curves[0], abs=1e-4)


def test_a_run_that_is_stopped_is_resumed_bit_for_bit(configured: Configured, short: Dataset) -> None:
    config, world = configured(data=APART, train={"tokens": 2560, "save_every": 3})
    whole = losses(config, short, world, "whole")
    events = train_run(config, short, RunDir.from_name("stopped"), world, RATE)
    for event in events:
        if isinstance(event, Stepped) and event.step == 5:
            break
    events.close()
    again = losses(config, short, world, "stopped")
    assert again == whole[len(whole) - len(again) :]
    last = -(-config.train.tokens // config.train.tokens_per_step)
    first, second = (load_file(RunDir.from_name(name).checkpoint(last) / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_validation_and_evaluation_see_as_training_does(configured: Configured, short: Dataset) -> None:
    config, world = configured(data=APART, train={"eval_tokens": 10**9})
    model = Llama(config.model).eval()
    measured = validate_model(NextToken(model), short, config, world)
    rule = window_rule(short, config.data, config.model.context)
    found = evaluate_streams(model, short.tokenizer, short.val, False, short.byte_lengths, rule)
    mixed = evaluate_streams(model, short.tokenizer, short.val, False, short.byte_lengths)
    assert measured is not None
    assert measured.loss == pytest.approx(found.loss, abs=1e-5)
    assert found.loss != pytest.approx(mixed.loss, abs=1e-6)


@pytest.mark.parametrize(
    ("device", "precision", "context", "each"),
    [
        ("cpu", torch.float32, 64, 1),
        ("cpu", torch.float32, 2048, 0),
        ("cuda", torch.bfloat16, 1024, 0),
        ("cuda", torch.float16, 1024, 3),
        ("cuda", torch.float32, 1024, 5),
    ],
)
def test_the_plan_counts_the_mask(configured: Configured, device: str, precision: torch.dtype, context: int, each: int) -> None:
    config, world = configured(data=APART)
    model = config.model.model_copy(update={"context": context})
    world = replace(world, device=torch.device(device), precision=Precision(precision, ""))
    assert mask_bytes(config.model_copy(update={"model": model}), world) == each * context**2
    assert mask_bytes(configured()[0], world) == 0

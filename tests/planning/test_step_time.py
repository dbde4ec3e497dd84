"""What a run takes: parts that add up, and that are what PyTorch takes where that can be counted."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, build_config
from llamactl.corpus.batches import Batch
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.hardware.device import Precision
from llamactl.optim.build import OPTIMIZERS
from llamactl.optim.distributed_muon import build_muon_exchange
from llamactl.planning.flops import flops_per_token, update_flops
from llamactl.planning.memory_estimate import MemoryEstimate, estimate_memory
from llamactl.planning.step_time import StepTime, estimate_duration, estimate_step_time
from llamactl.training.build import build_objective
from llamactl.training.gradients import accumulate_gradients
from tests.processes import forked, status

Configured = Callable[..., tuple[Config, World]]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weights_and_optimizer_are_what_they_are(optimizer: str, configured: Configured) -> None:
    config, world = configured(optim={"name": optimizer})
    model = build_objective(config, world).model
    optimizers = OPTIMIZERS[optimizer](model, config.optim, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for each in optimizers:
        each.step()
    found = estimate_memory(config, world)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert found.weights == found.gradients == weights
    saved = take_snapshot(model, optimizers).nbytes
    assert found.weights + found.optimizer == pytest.approx(saved, rel=0.06)  # row memories and step counters are left out
    assert found.saving == pytest.approx(saved, rel=0.06)


def test_the_whole_is_the_larger_of_two_moments(configured: Configured) -> None:
    config, world = configured()
    found = estimate_memory(config, world)
    held = found.weights + found.gradients + found.optimizer + found.saving + found.program
    assert found.total == held + max(found.activations + found.logits, found.update)
    assert found.required_bytes == found.total - found.program - found.saving
    many, _ = configured(train={"micro_batch": 8})
    few, _ = configured(train={"micro_batch": 2})
    assert estimate_memory(many, world).activations == 4 * estimate_memory(few, world).activations
    compiled, _ = configured(train={"compile": "on", "micro_batch": 8})
    assert estimate_memory(compiled, world).activations < estimate_memory(many, world).activations


def test_time_is_steps_and_what_is_between_them(configured: Configured) -> None:
    few = {"eval_every": 10, "eval_tokens": 256, "prompts": ()}
    config, world = configured(train=few, optim={"name": "adamw"})
    taken = estimate_duration(config, world, 20, StepTime(step=3.0, start=5.0))
    assert taken.steps == 60
    assert taken.looking == pytest.approx(2 * 1.0)  # two validations of a step's tokens, a third of a step each
    assert taken.total == 67
    # A part of Muon's step is the update, which a validation has none of.
    muon, _ = configured(train=few)
    part = 256 * flops_per_token(muon.model) / (256 * flops_per_token(muon.model) + update_flops(muon.model, "muon"))
    silent = estimate_duration(muon, world, 20, StepTime(step=3.0, start=5.0)).looking
    assert silent == pytest.approx(2 * part)
    talkative, _ = configured(train={"eval_every": 10, "eval_tokens": 256})
    assert estimate_duration(talkative, world, 20, StepTime(3.0, 5.0)).looking > silent


def test_a_faster_device_is_faster(dataset: Dataset, configured: Configured) -> None:
    config, world = configured()
    assert estimate_step_time(config, world, 2e12).step == pytest.approx(estimate_step_time(config, world, 1e12).step / 2)
    assert estimate_step_time(config, world, 1e12).start == 0
    compiled, _ = configured(train={"compile": "on"})
    assert estimate_step_time(compiled, world, 1e12).start > 0


def many(config: Config, shards: int, size: int = 8) -> tuple[MemoryEstimate, MemoryEstimate]:
    """What one process needs, and one of many."""
    alone = World(torch.device("cpu"), Precision(torch.float32, ""))
    return estimate_memory(config, alone), estimate_memory(
        config, replace(alone, size=size, local_world_size=size, shards=shards)
    )


def test_parts_of_the_state_are_held_and_what_is_whole_for_a_while_is_counted(configured: Configured) -> None:
    """The small model has blocks of 9,280 weights (32 x 96 in attention, 3 x 32 x 64 and 64), and 512 rows of 32 twice."""
    config, _ = configured(train={"micro_batch": 2, "tokens_per_step": 512})
    alone, parts = many(config, 8)
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(parts, name) == pytest.approx(getattr(alone, name) / 8, abs=8)
    assert alone.gathered == 0
    assert parts.gathered == 9_280 * (3 * 4 + 4) + 4 * (2 * 512 * 32 + 32) + 4 * 512 * 32
    assert parts.saving == 4 * 512 * 32
    assert parts.total == (
        parts.weights + parts.gradients + parts.optimizer + parts.saving + parts.program + parts.exchange
        + max(parts.activations + parts.logits + parts.gathered, parts.update)
    )  # fmt: skip
    _, copies = many(config, 1)
    assert (copies.weights, copies.saving, copies.gathered) == (alone.weights, alone.saving, 0)
    assert copies.program == pytest.approx(alone.program + 150e6, rel=0.05)
    others = World(torch.device("cpu"), Precision(torch.float32, ""), rank=3, size=8, local_world_size=8)
    assert estimate_memory(config, others).saving == 0


def test_updates_take_room_for_what_a_process_was_dealt(configured: Configured) -> None:
    """The largest stack is gate and up of both blocks: four matrices of 64 x 32 numbers, 8,192 bytes each."""
    config, _ = configured()
    alone, parts = many(config, 8)
    assert alone.update == 5 * 4 * 8192
    assert parts.update == 2 * 4 * 8192 / 8 + 6 * 8192
    _, copies = many(config, 1)
    assert copies.update == 2 * 4 * 8192 + 6 * 8192
    _, groups = many(config, 4)
    assert groups.update == 2 * 8192 + 6 * 8192


def peak(work: Callable[[], object]) -> int:
    """Bytes of tensors on the CPU at most, beside those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    now = most = 0
    for event in found.profiler.kineto_results.events():
        now += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, now)
    return most


@pytest.mark.slow
@pytest.mark.parametrize("shards", [8, 4])
def test_processes_that_share_a_model_need_what_was_expected(shards: int) -> None:
    """One of eight, whose sendings go nowhere: tensors are as large as they would be, whatever is in them."""
    shape = {"n_layers": 6, "dim": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "ffn_dim": 704, "context": 1024}
    train = {"tokens_per_step": 16 * 1024, "micro_batch": 1, "compile": "off", "activation_checkpointing": "off"}
    config = build_config([{"model": {**shape, "vocab_size": 4096}, "train": train}])
    world = World(torch.device("cpu"), Precision(torch.bfloat16, ""), size=8, local_world_size=8, shards=shards)

    def work() -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
        objective = build_objective(config, world)
        optimizers = OPTIMIZERS["muon"](objective.model, config.optim, torch.bfloat16, build_muon_exchange(world))
        tokens = torch.randint(0, 4096, (1, 1024))
        scaler = torch.amp.GradScaler("cpu", enabled=False)

        def gradients() -> None:
            accumulate_gradients(objective, 2 * [Batch(tokens, tokens, 0.5)], world, scaler)

        def update() -> None:
            for optimizer in optimizers:
                optimizer.step()

        gradients()
        update()
        objective.model.zero_grad()
        expected = estimate_memory(config, world)
        passing = expected.activations + expected.logits + expected.gathered + expected.gradients
        assert 0.8 < peak(gradients) / passing < 1.05
        assert 0.8 < peak(update) / expected.update < 1.05

    assert status(forked(work)) == 0

"""Plans beside one another: ways for processes to share a run, and what would fit where a plan does not."""

from dataclasses import replace

import pytest

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World, init_device, world_of_card
from llamactl.errors import OutOfSpace, UsageError
from llamactl.hardware.gpus import find_card
from llamactl.planning.alternatives import parallel_strategies
from llamactl.planning.batch_size import windows_per_rank
from llamactl.planning.fit import check_memory
from llamactl.planning.flops import update_flops
from llamactl.planning.memory import free_memory
from llamactl.planning.memory_estimate import estimate_memory
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import choose_sharding, resolve_config

GPT2 = {"model": {"vocab_size": 50_304}}
RATE = find_card("h100").rate


def cards(number: int, neighbours: int = 0, card: str = "h100") -> World:
    return replace(world_of_card(find_card(card)), size=number, local_world_size=neighbours or number)


def large(**train: object) -> Config:
    return build_config([preset_settings("7b"), GPT2, {"train": {"tokens": 10**10, **train}}])


def test_7b_fits_eight_h100_in_parts_and_not_as_copies(dataset: Dataset) -> None:
    """12 bytes a parameter are 89 GB for its weights, gradients and momentum."""
    world = choose_sharding(large(), dataset, cards(8))
    copies, parts = parallel_strategies(large(), dataset, world, RATE)
    assert (copies.name, copies.fits, copies.chosen) == ("ddp", False, False)
    assert (parts.name, parts.fits, parts.chosen) == ("fsdp", True, True)
    state = 12 * num_params(large().model)
    for way, share in ((copies, 1), (parts, 8)):
        held = way.memory.weights + way.memory.gradients + way.memory.optimizer
        assert held == pytest.approx(state / share, rel=0.03)  # AdamW's second number for embedding and head
    assert parts.tokens_per_second == pytest.approx(524_288 / parts.step)
    # Half of 8 x 989 TFLOP/s at 6 FLOPs a parameter but for the embedding, and attention, were nothing else in the way.
    assert 0.6 < parts.tokens_per_second / (0.5 * 8 * RATE / (6 * 7.2e9 + 12 * 32 * 4096 * 4096)) < 1


def test_machines_hold_a_copy_each_where_they_can(dataset: Dataset) -> None:
    world = choose_sharding(large(), dataset, cards(16, 8))
    assert (world.shards, world.replicas) == (8, 2)
    assert [way.name for way in parallel_strategies(large(), dataset, world, RATE)] == ["ddp", "hsdp:8", "fsdp"]
    assert choose_sharding(large(), dataset, cards(8, 2, "l40s")).shards == 8  # two L40S can't hold a copy
    assert [way.name for way in parallel_strategies(large(), dataset, cards(3, 2), RATE)] == ["ddp", "fsdp"]  # uneven machines


def test_small_models_are_copied_and_wishes_are_followed(dataset: Dataset) -> None:
    small = build_config([preset_settings("150m"), {"train": {"tokens": 10**8}}])
    assert choose_sharding(small, dataset, cards(8)).shards == 1
    for wish, shards in (("ddp", 1), ("fsdp", 16), ("hsdp", 8), ("hsdp:4", 4), ("hsdp:16", 16)):
        config = build_config([small.model_dump(), {"train": {"parallel": wish}}])
        world = choose_sharding(config, dataset, cards(16, 8))
        assert world.shards == shards
        assert [way.name for way in parallel_strategies(config, dataset, world, RATE) if way.chosen] == [
            {1: "ddp", 16: "fsdp"}.get(shards, f"hsdp:{shards}")
        ]
        alone = cards(1)
        assert choose_sharding(config, dataset, alone) is alone


def test_copies_need_some_room_to_spare_unless_they_were_asked_for(dataset: Dataset) -> None:
    config = build_config(
        [preset_settings("150m"), {"train": {"tokens": 10**8, "micro_batch": 1, "activation_checkpointing": "off"}}]
    )
    needed = estimate_memory(resolve_config(config, dataset, cards(8)), cards(8)).required_bytes
    assert choose_sharding(config, dataset, replace(cards(8), memory_override=int(1.06 * needed))).shards == 1
    tight = replace(cards(8), memory_override=int(1.04 * needed))
    assert choose_sharding(config, dataset, tight).shards == 8
    asked = build_config([config.model_dump(), {"train": {"parallel": "ddp"}}])
    check_memory(
        make_plan(resolve_config(asked, dataset, tight), dataset, tight, RATE), resolve_config(asked, dataset, tight), tight
    )


def test_wishes_that_can_not_be(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="groups of 3") as caught:
        choose_sharding(large(parallel="hsdp:3"), dataset, cards(8))
    assert caught.value.fix.endswith("2, 4")
    half = replace(world_of_card(find_card("h100"), "fp16"), size=8, local_world_size=8)
    for wish in ("fsdp", "hsdp"):
        with pytest.raises(UsageError, match="fp16") as caught:
            choose_sharding(large(parallel=wish), dataset, half)
        assert "--parallel ddp" in caught.value.fix
    world = choose_sharding(large(), dataset, half)
    assert world.shards == 1
    assert [way.name for way in parallel_strategies(large(), dataset, world, RATE)] == ["ddp"]
    assert fix_of(large(), dataset, half).endswith("--preset 1b")


def fix_of(config: Config, dataset: Dataset, world: World) -> str:
    world = choose_sharding(config, dataset, world)
    resolved = resolve_config(config, dataset, world)
    with pytest.raises(OutOfSpace, match="does not fit") as caught:
        check_memory(make_plan(resolved, dataset, world, RATE), resolved, world)
    return caught.value.fix


def test_what_does_not_fit_is_said_with_the_way_or_the_number_that_would(dataset: Dataset) -> None:
    assert fix_of(large(parallel="ddp"), dataset, cards(8)).endswith("--parallel fsdp")
    assert fix_of(large(parallel="ddp"), dataset, cards(16, 8)).endswith("--parallel hsdp:8")
    assert fix_of(large(activation_checkpointing="off", micro_batch=4), dataset, cards(8)).endswith("--set train.micro_batch=2")
    assert fix_of(large(), dataset, cards(1)).endswith("--preset 1b, or 4 such GPUs with --parallel fsdp")
    fitting = choose_sharding(large(), dataset, cards(4))
    check_memory(
        make_plan(resolve_config(large(), dataset, fitting), dataset, fitting, RATE),
        resolve_config(large(), dataset, fitting),
        fitting,
    )


@pytest.mark.parametrize("given", [{}, {"tokens_per_step": 13 * 1024}, {"micro_batch": 3}])
def test_many_processes_share_the_tokens_of_a_step_that_one_would_have(given: dict[str, int], dataset: Dataset) -> None:
    config = build_config([preset_settings("150m"), {"train": {"tokens": 256_000, **given}}])
    alone = resolve_config(config, dataset, cards(1)).train
    windows = alone.tokens_per_step // 1024
    for size in (2, 3, 4, 64):
        world = choose_sharding(config, dataset, cards(size))
        shared = resolve_config(config, dataset, world)
        assert shared.train.tokens_per_step == alone.tokens_per_step
        most = windows_per_rank(windows, size)
        assert shared.train.micro_batch == min(most, given.get("micro_batch", most))
        assert resolve_config(shared, dataset, world) == shared


def test_micro_batches_of_many_are_alike(dataset: Dataset) -> None:
    """113 windows among 8 are 15, and not more than 8 of them at once: 8 and 7."""
    world = replace(choose_sharding(large(), dataset, cards(8)), memory_override=int(79e9))
    resolved = resolve_config(large(tokens_per_step=113 * 4096, activation_checkpointing="on"), dataset, world)
    assert resolved.train.micro_batch == 8


def test_updates_are_dealt_out() -> None:
    """32 blocks have 32, 64 or 128 matrices of a shape: all come out even among 8, and among 64 at most one of each is left."""
    model = large().model
    assert update_flops(model, "muon", 8) == pytest.approx(update_flops(model, "muon") / 8)
    assert update_flops(model, "muon", 64) > update_flops(model, "muon") / 64


def test_processes_share_a_machines_memory() -> None:
    world = init_device(build_config([{"train": {"device": "cpu"}}]).train)
    assert free_memory(replace(world, size=4, local_world_size=4)) == pytest.approx(free_memory(world) / 4, rel=0.1)
    assert free_memory(replace(cards(4), local_world_size=4)) == free_memory(cards(1))

"""What processes send one another: worked out by hand for a small model."""

from dataclasses import replace

import pytest
import torch

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, build_config
from llamactl.distributed.context import World
from llamactl.hardware.device import Precision
from llamactl.planning import communication
from llamactl.planning import flops as planning_flops
from llamactl.planning.communication import NETWORK, Traffic, buffer_bytes, exchange_seconds, link_bandwidth
from llamactl.planning.flops import flops_per_token, update_flops
from llamactl.planning.step_time import estimate_step_time, expected_efficiency

# A block has 64 + 32 + 32 + 64 + 3 x 128 weights in matrices and 16 in norms: 592. Outside of blocks there are 2 x 80 + 8.
SMALL = {"n_layers": 2, "dim": 8, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "ffn_dim": 16, "context": 4, "vocab_size": 10}
ALL, BLOCKS, ROOT = 1352, 1184, 168
DEALT = 4 * (64 + 32 + 128 + 128)  # bytes of what one of four processes gets of 4, 4, 4 and 2 matrices
FOUR = World(
    torch.device("cuda"), Precision(torch.bfloat16, ""), size=4, local_world_size=4, memory_override=10**9, link_bandwidth=100.0
)


def configured(windows: int, **over: object) -> Config:
    """Micro-batches of one window."""
    train = {"tokens_per_step": 4 * windows, "micro_batch": 1, "activation_checkpointing": "off", "compile": "off"}
    return build_config([{"model": SMALL, "train": train}, over])


def test_the_small_model_is_as_large_as_was_worked_out() -> None:
    model = configured(8).model
    assert (
        num_params(model),
        model.n_layers * planning_flops.num_block_params(model),
        planning_flops.num_root_params(model),
    ) == (
        ALL,
        BLOCKS,
        ROOT,
    )


def test_copies_send_gradients_once_a_step_and_updates() -> None:
    expected = Traffic(copies=2 * 3 * 4 * ALL // 4, updates=3 * DEALT)
    assert (
        communication.estimate_traffic(configured(8), FOUR) == communication.estimate_traffic(configured(80), FOUR) == expected
    )
    assert communication.estimate_traffic(configured(8, optim={"name": "adamw"}), FOUR) == replace(expected, updates=0)


def test_parts_are_gathered_twice_for_each_micro_batch_and_the_rest_once() -> None:
    fsdp = replace(FOUR, shards=4)
    once = Traffic(weights=3 * (2 * 2 * BLOCKS + 4 * ROOT) // 4, gradients=3 * 4 * ALL // 4, muon=2 * 3 * DEALT // 4)
    assert communication.estimate_traffic(configured(4), fsdp) == once
    assert communication.estimate_traffic(configured(8), fsdp) == replace(
        once, weights=2 * once.weights, gradients=2 * once.gradients
    )
    assert communication.estimate_traffic(configured(5), fsdp) == communication.estimate_traffic(
        configured(8), fsdp
    )  # all have as many as the busiest
    full = communication.estimate_traffic(configured(4), replace(fsdp, precision=Precision(torch.float32, "")))
    assert full == replace(once, weights=3 * (2 * 4 * BLOCKS + 4 * ROOT) // 4)


def test_groups_do_both() -> None:
    found = communication.estimate_traffic(configured(4), replace(FOUR, shards=2))
    assert found == Traffic(
        weights=(2 * 2 * BLOCKS + 4 * ROOT) // 2, gradients=2 * ALL, copies=4 * ALL // 2, muon=DEALT, updates=DEALT
    )
    assert found.total == sum(vars(found).values())


def test_a_process_alone_sends_nothing() -> None:
    alone = replace(FOUR, size=1, local_world_size=1)
    assert communication.estimate_traffic(configured(8), alone).total == 0
    assert buffer_bytes("muon", alone) == 0


def test_machines_are_joined_by_a_network_that_their_gpus_share() -> None:
    sent = Traffic(weights=600, gradients=400, muon=200, copies=4000, updates=3000)
    assert exchange_seconds(sent, FOUR) == (50.0, 32.0)
    fast = replace(FOUR, local_world_size=2, link_bandwidth=1e15)
    assert exchange_seconds(sent, fast) == pytest.approx((4000 / (2 * NETWORK), 3000 / (2 * NETWORK)), rel=1e-3)
    groups = exchange_seconds(sent, replace(fast, shards=2))  # one of each machine in a group of copies
    assert groups == pytest.approx((4000 / NETWORK, 3000 / NETWORK), rel=1e-3)
    everywhere = exchange_seconds(sent, replace(fast, shards=4))
    assert everywhere == pytest.approx((1000 / (2 * NETWORK) + 4000 / NETWORK, 200 / (2 * NETWORK) + 3000 / NETWORK), rel=1e-3)


def test_the_link_is_the_cards_or_that_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(FOUR, link_bandwidth=0.0)
    for name, expected in (("NVIDIA H100 80GB HBM3", 450e9), ("NVIDIA H100 PCIe", 25e9), ("NVIDIA T4", 25e9)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert link_bandwidth(here) == expected
    assert link_bandwidth(FOUR) == 100.0
    assert link_bandwidth(replace(here, device=torch.device("cpu"))) == communication.LOOPBACK


def test_a_gpu_sends_while_it_computes_and_a_cpu_does_not() -> None:
    config, rate = configured(8), 1e6
    reached = rate * expected_efficiency(config, FOUR)
    working = 2 * 4 * flops_per_token(config.model) / reached
    after = update_flops(config.model, "muon", 4) / reached + 3 * DEALT / FOUR.link_bandwidth
    assert estimate_step_time(config, FOUR, rate).step == pytest.approx(max(working, 81.12) + after)
    assert working < 81.12  # bytes of gradients, at 100 a second
    fast = replace(FOUR, link_bandwidth=1e12)
    assert estimate_step_time(config, fast, rate).step == pytest.approx(
        working + update_flops(config.model, "muon", 4) / reached
    )
    again = configured(8, train={"activation_checkpointing": "on"})
    assert estimate_step_time(again, fast, rate).step - estimate_step_time(config, fast, rate).step == pytest.approx(
        working / 3
    )
    cpu = replace(FOUR, device=torch.device("cpu"), precision=Precision(torch.float32, ""))
    slower = rate * expected_efficiency(config, cpu) / reached
    assert estimate_step_time(config, cpu, rate).step == pytest.approx(
        (working + update_flops(config.model, "muon", 4) / reached) / slower + 81.12 + 3 * DEALT / 100
    )


def test_the_busiest_process_is_waited_for() -> None:
    fast = replace(FOUR, link_bandwidth=1e15)
    adamw = {"optim": {"name": "adamw"}}
    assert estimate_step_time(configured(5, **adamw), fast, 1e6).step == pytest.approx(
        estimate_step_time(configured(8, **adamw), fast, 1e6).step
    )


def test_buffers_grow_with_the_link_and_where_each_sends_to_each() -> None:
    h100 = replace(FOUR, link_bandwidth=450e9)
    assert buffer_bytes("muon", h100) == pytest.approx(1.1e9, rel=0.01)
    assert buffer_bytes("muon", replace(h100, shards=4)) == pytest.approx(1.1e9 + 3.15e9, rel=0.01)
    assert buffer_bytes("adamw", replace(h100, shards=4)) == buffer_bytes("muon", h100)
    assert buffer_bytes("muon", replace(h100, device=torch.device("cpu"))) == 0

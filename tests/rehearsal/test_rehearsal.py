"""The CUDA path on a machine without a GPU: `make rehearse`.

A driver that computes nothing stands below PyTorch's real CUDA build (driver/setup.sh, 4.6 GB), so that launches, copies,
waits, memory and the choice of kernels are those of a GPU. Nothing here is a speed.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FOLDER = os.environ.get("LLAMACTL_REHEARSAL", "")

pytestmark = pytest.mark.skipif(not FOLDER, reason="make rehearse sets LLAMACTL_REHEARSAL")

# Compute capability, and the bytes of shared memory of a multiprocessor, of which kernels are chosen too.
CARDS = {"75": 65_536, "80": 167_936, "86": 102_400, "89": 102_400, "90": 233_472, "120": 102_400}


def run(*words: str, **card: str) -> str:
    """Run a command on a card and return what it printed."""
    # The environment of the test run has another PyTorch.
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(HERE / "driver" / "run.sh"), FOLDER, *words]
    done = subprocess.run(command, env=variables | card, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rehearse(*words: object, launcher: tuple[str, ...] = (), **card: str) -> list[Any]:
    """Run a command of measure.py on a card and return its lines."""
    printed = run("python", *launcher, str(HERE / "measure.py"), *map(str, words), **card)
    return [json.loads(line) for line in printed.splitlines() if line.startswith(("{", "[", '"'))]


@pytest.mark.parametrize(
    ("preset", "windows", "context", "compile"),
    [
        ("150m", 32, 1024, "on"),
        ("150m", 50, 256, "on"),
        ("150m", 8, 1024, "off"),
        ("350m", 16, 1024, "on"),
        ("350m", 8, 1024, "off"),
        ("10m", 16, 512, "on"),
        ("1b", 4, 2048, "on"),
        ("150m", 50, 256, "graphs"),
        ("10m", 16, 512, "graphs"),
        ("tiny", 16, 256, "graphs"),
    ],
)
def test_a_step_waits_once_copies_from_pinned_memory_and_takes_what_is_planned(
    preset: str, windows: int, context: int, compile: str
) -> None:
    (found,) = rehearse("step", preset, windows, context, compile)
    gradients, update = found["gradients"], found["update"]
    assert not found["degraded"]
    assert gradients["pageable"] == update["pageable"] == 0
    assert gradients["syncs"] + update["syncs"] == 1
    assert update["d2h"] == 1
    assert found["peak"] == pytest.approx(found["planned"], rel=0.1)
    if (preset, compile) == ("150m", "on"):
        assert gradients["launches"] < 700
        assert gradients["products"] < 160
    if compile == "graphs":
        assert gradients["launches"] < 10


def test_a_step_that_can_not_be_captured_trains_without_a_graph() -> None:
    (found,) = rehearse("step", "tiny", 4, 256, "graphs", FAKE_UNCAPTURABLE="1")
    assert [why.partition(":")[0] for why in found["degraded"]] == ["without CUDA graphs"]
    assert 100 < found["gradients"]["launches"] < 300


def test_a_checkpoint_is_copied_to_pinned_memory() -> None:
    for found in rehearse("save", "tiny"):
        assert found["d2h"] > 50
        assert found["d2h_pageable"] <= 1, "whether all numbers are finite"


def test_the_matrix_rate_is_that_of_a_clock_that_was_raised() -> None:
    (found,) = rehearse("rate")
    assert found["products"] > 5


def test_the_loss_reads_the_logits_few_times() -> None:
    """Besides its products: a chunk in PyTorch's operators would read and write 86 GB."""
    (found,) = rehearse("loss_traffic")
    assert 6e9 < found["bytes"] < 20e9


@pytest.mark.parametrize("capability", CARDS)
def test_no_card_falls_back_to_attention_without_a_kernel(capability: str) -> None:
    for dtype, heads, masked, found in rehearse("kernels", FAKE_SM=capability, FAKE_SMEM=str(CARDS[capability])):
        flash = dtype != "float32" and not masked and capability != "75"
        # Turing trains in fp16.
        if (dtype, capability) != ("bfloat16", "75"):
            assert found == (["flash_attention"] if flash else ["efficient_attention"]), (dtype, heads, masked)


@pytest.mark.parametrize("compile", ["on", "graphs"])
def test_a_full_card_halves_the_micro_batch_and_trains_to_the_end(compile: str) -> None:
    events = rehearse("full_card", 64, compile, FAKE_MEM="2.5e9")
    halvings = [why for name, why in events if name == "Degraded"]
    if compile == "graphs":
        assert halvings.pop(0).startswith("without CUDA graphs: CUDA out of memory")
    assert halvings
    assert all("out of memory: micro-batch" in why for why in halvings)
    assert [name for name, _ in events].count("Stepped") == 3


@pytest.mark.parametrize("capability", ["86", "89", "90", "120"])
def test_compiled_code_is_made_for_each_generation(capability: str) -> None:
    assembler = run("python", "-c", f"from triton.backends.nvidia.compiler import get_ptxas as g; print(g({capability}).path)")
    if f"sm_{capability}" not in run(assembler.strip(), "--help"):
        pytest.skip(f"this Triton's ptxas has no sm_{capability}")
    (found,) = rehearse("step", "tiny", 4, 256, "on", FAKE_SM=capability, FAKE_SMEM=str(CARDS[capability]))
    assert found["gradients"]["launches"] < 300


def test_a_card_with_a_number_becomes_the_current_one() -> None:
    assert rehearse("second_card", FAKE_GPUS="2") == [[1]]


@pytest.mark.parametrize("kind", ["f32", "bf16", "int8"])
def test_decoding_launches_a_graph_and_waits_for_no_token(kind: str) -> None:
    (found,) = rehearse("decode", kind)
    assert found["launches"] < 10 * 5
    assert found["syncs"] == 0


@pytest.mark.parametrize("number", [4, 8])
def test_texts_that_are_continued_together_share_a_graph_and_nobody_waits(number: int) -> None:
    everything, without_one = rehearse("rows", number)
    for found, texts in ((everything, number), (without_one, number - 1)):
        assert found["launches"] < 10 * texts * 5
        assert found["syncs"] == 0


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_cards_ask_for_the_same_collectives_in_the_same_order(parallel: str, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ranks = rehearse("together", parallel, launcher=launcher, FAKE_GPUS="2", FAKE_NCCL_LOG=str(tmp_path / "log"))
    assert sorted(rank["device"] for rank in ranks) == [0, 1]
    # What one sends the other receives.
    logs = ((tmp_path / f"log.{rank}").read_text().replace("Send", "Recv") for rank in (0, 1))
    first, second = (log.splitlines() for log in logs)
    assert first == second
    assert any(line.startswith("AllReduce" if parallel == "ddp" else "ReduceScatter") for line in first)

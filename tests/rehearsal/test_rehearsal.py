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
CARDS = {"75": 65_536, "80": 167_936, "86": 102_400, "89": 102_400, "90": 233_472}


def rehearse(*words: object, launcher: tuple[str, ...] = (), **card: str) -> list[Any]:
    """Run a command of measure.py on a card and return its lines."""
    command = [str(HERE / "driver" / "run.sh"), FOLDER, "python", *launcher, str(HERE / "measure.py"), *map(str, words)]
    # The environment of the test run has another PyTorch.
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, env=variables | card, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "[", '"'))]


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
    ],
)
def test_a_step_waits_once_copies_from_pinned_memory_and_takes_what_is_planned(
    preset: str, windows: int, context: int, compile: str
) -> None:
    (found,) = rehearse("step", preset, windows, context, compile)
    gradients, update = found["gradients"], found["update"]
    assert gradients["pageable"] == update["pageable"] == 0
    assert gradients["syncs"] + update["syncs"] == 1
    assert update["d2h"] == 1
    assert found["peak"] == pytest.approx(found["planned"], rel=0.1)
    if (preset, compile) == ("150m", "on"):
        assert gradients["launches"] < 700
        assert gradients["products"] < 160


@pytest.mark.parametrize("capability", CARDS)
def test_no_card_falls_back_to_attention_without_a_kernel(capability: str) -> None:
    for dtype, heads, masked, found in rehearse("kernels", FAKE_SM=capability, FAKE_SMEM=str(CARDS[capability])):
        flash = dtype != "float32" and not masked and capability != "75"
        # Turing trains in fp16.
        if (dtype, capability) != ("bfloat16", "75"):
            assert found == (["flash_attention"] if flash else ["efficient_attention"]), (dtype, heads, masked)


def test_a_full_card_halves_the_micro_batch_and_trains_to_the_end() -> None:
    events = rehearse("full_card", 64, FAKE_MEM="2.5e9")
    halvings = [why for name, why in events if name == "Degraded"]
    assert halvings
    assert all("out of memory: micro-batch" in why for why in halvings)
    assert [name for name, _ in events].count("Stepped") == 3


@pytest.mark.parametrize("capability", ["86", "89", "90"])
def test_compiled_code_is_made_for_each_generation(capability: str) -> None:
    (found,) = rehearse("step", "tiny", 4, 256, "on", FAKE_SM=capability, FAKE_SMEM=str(CARDS[capability]))
    assert found["gradients"]["launches"] < 300


def test_a_card_with_a_number_becomes_the_current_one() -> None:
    assert rehearse("second_card", FAKE_GPUS="2") == [[1]]


@pytest.mark.parametrize("kind", ["f32", "bf16", "int8"])
def test_decoding_launches_a_graph_and_waits_for_no_token(kind: str) -> None:
    (found,) = rehearse("decode", kind)
    assert found["launches"] < 10 * 6
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

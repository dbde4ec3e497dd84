"""What the device can do: measured, or known from its data sheet."""

import pytest
import torch

from llamactl.distributed.context import World
from llamactl.hardware import throughput
from llamactl.hardware.device import Precision

CPU = World(torch.device("cpu"), Precision(torch.float32, ""))


def test_a_rate_is_two_operations_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "time_call", lambda *_: 0.5)
    assert throughput.matmul_flops(CPU.device, CPU.precision.dtype) == 2 * 1536**3 / 0.5
    assert throughput.memory_bandwidth(CPU.device) == 2 * (1 << 28) / 0.5


def test_the_best_of_a_few_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(throughput, "time_call", lambda *_: next(times))
    assert throughput.matmul_flops(CPU.device, CPU.precision.dtype, tries=3) == 2 * 1536**3 / 1.0


@pytest.mark.parametrize(("name", "rate"), [("NVIDIA H200", 989.4e12), ("NVIDIA RTX A4000", 76.7e12), ("A card of 2040", 0.0)])
def test_data_sheets_are_known_by_the_cards_name(name: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    gpu = World(torch.device("cuda"), Precision(torch.bfloat16, ""))
    assert throughput.datasheet_flops(gpu.device, gpu.precision.dtype) == rate
    assert throughput.datasheet_flops(gpu.device, CPU.precision.dtype) == 0.0
    assert throughput.datasheet_flops(CPU.device, CPU.precision.dtype) == 0.0

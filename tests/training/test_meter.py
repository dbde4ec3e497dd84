"""What the device can do: measured, or known from its data sheet."""

import pytest
import torch

from llamactl.model.device import Precision
from llamactl.training import meter
from llamactl.training.world import World

CPU = World(torch.device("cpu"), Precision(torch.float32, ""))


def test_a_rate_is_two_operations_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "seconds", lambda *_: 0.5)
    assert meter.matrix_rate(CPU) == 2 * 1536**3 / 0.5
    assert meter.bandwidth(CPU) == 2 * (1 << 28) / 0.5


def test_the_best_of_a_few_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(meter, "seconds", lambda *_: next(times))
    assert meter.matrix_rate(CPU, tries=3) == 2 * 1536**3 / 1.0


@pytest.mark.parametrize(("name", "rate"), [("NVIDIA H200", 989.4e12), ("NVIDIA RTX A4000", 76.7e12), ("A card of 2040", 0.0)])
def test_data_sheets_are_known_by_the_cards_name(name: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    gpu = World(torch.device("cuda"), Precision(torch.bfloat16, ""))
    assert meter.sheet_rate(gpu) == rate
    assert meter.sheet_rate(World(gpu.device, CPU.precision)) == 0.0
    assert meter.sheet_rate(CPU) == 0.0

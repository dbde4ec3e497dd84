"""The choice of device and number format."""

import pytest
import torch

from llamactl.errors import UsageError
from llamactl.hardware import device as hardware_device
from llamactl.hardware.device import choose_device, choose_precision


def test_auto_finds_something() -> None:
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        choose_device(name)


@pytest.mark.parametrize(("instructions", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_uses_bf16_only_with_instructions_for_it(instructions: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_device, "multiplies_bf16", lambda device: instructions)
    chosen = choose_precision("auto", torch.device("cpu"))
    assert chosen.name == name
    assert "bf16 instructions" in chosen.reason


def test_what_is_asked_for_is_given() -> None:
    assert [choose_precision(name, torch.device("cpu")).name for name in ("bf16", "fp32")] == ["bf16", "fp32"]

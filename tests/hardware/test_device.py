"""The choice of device and number format."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llamactl.errors import UsageError
from llamactl.hardware import device as hardware_device
from llamactl.hardware.device import (
    choose_device,
    choose_precision,
    format_of_products,
    is_out_of_memory,
    unused_gpu,
)  # fmt: skip


def test_auto_finds_something() -> None:
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        choose_device(name)


@pytest.mark.parametrize(("instructions", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_uses_bf16_only_with_instructions_for_it(instructions: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_device, "multiplies_bf16", lambda device: instructions)
    monkeypatch.setattr(hardware_device, "gains_by_bf16", lambda: True)
    chosen = choose_precision("auto", torch.device("cpu"))
    assert chosen.name == name
    assert "bf16 instructions" in chosen.reason


def test_instructions_that_are_slower_than_those_of_fp32_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_device, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(hardware_device, "gains_by_bf16", lambda: False)
    chosen = choose_precision("auto", torch.device("cpu"))
    assert (chosen.name, chosen.reason) == ("fp32", "this cpu has bf16 instructions, but multiplies fp32 faster")
    assert choose_precision("bf16", torch.device("cpu")).name == "bf16"


@pytest.mark.parametrize(("bf16", "fp32", "gains"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_the_faster_format_is_found_although_one_try_was_held_up(
    bf16: float, fp32: float, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: iter([9.0, bf16, bf16, bf16]), torch.float32: iter([fp32, fp32, 9.0, fp32])}

    def pretend(product: Callable[[], torch.Tensor], device: torch.device) -> float:
        return next(seconds[product().dtype])

    monkeypatch.setattr(hardware_device, "time_call", pretend)
    assert hardware_device.gains_by_bf16.__wrapped__() == gains


def test_what_is_asked_for_is_given() -> None:
    assert [choose_precision(name, torch.device("cpu")).name for name in ("bf16", "fp32")] == ["bf16", "fp32"]


class PretendedGpu:
    """What torch.cuda says of a GPU that this machine does not have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str]) -> None:
        for name, value in {
            "is_available": True, "current_device": 0, "get_device_name": "NVIDIA Pretended", "get_arch_list": built,
            "get_device_capability": capability, "is_bf16_supported": capability >= (8, 0), "set_device": None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **named: value)


CUDA_12_8 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built", "device"),
    [
        ((8, 6), CUDA_12_8, "cuda"),
        ((8, 9), CUDA_12_8, "cuda"),
        ((7, 0), CUDA_12_8, "cpu"),
        ((6, 1), CUDA_12_8, "cpu"),
        ((9, 0), ["sm_80"], "cpu"),
        ((9, 0), ["sm_80", "compute_80"], "cuda"),
        ((9, 0), ["sm_90a"], "cuda"),
        ((9, 4), ["gfx90a", "gfx942"], "cuda"),
    ],
)
def test_auto_takes_a_gpu_for_which_there_is_code(
    capability: tuple[int, int], built: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendedGpu(monkeypatch, capability, built)
    assert choose_device("auto").type == device


def test_a_gpu_that_is_left_unused_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(hardware_device, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not unused_gpu("auto", cpu)
    (tmp_path / "version").write_text("NVRM version: 580.1")
    assert not unused_gpu("cpu", cpu), "as asked"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not unused_gpu("auto", cpu), "hidden on purpose"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert unused_gpu("auto", cpu).endswith("this PyTorch has no CUDA")
    PretendedGpu(monkeypatch, (7, 0), CUDA_12_8)
    assert unused_gpu("auto", cpu).endswith("no code for this machine's NVIDIA Pretended")


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32"), ((8, 6), "bf16")])
def test_a_gpu_trains_in_what_its_tensor_cores_multiply(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendedGpu(monkeypatch, capability, [])
    assert choose_precision("auto", torch.device("cuda")).name == name


def test_products_that_are_shortened_to_tf32_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    PretendedGpu(monkeypatch, (8, 0), [])
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert [format_of_products(cuda, dtype) for dtype in (torch.float32, torch.bfloat16)] == ["tf32", "bf16"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert format_of_products(cuda, torch.float32) == "fp32"
    PretendedGpu(monkeypatch, (7, 5), [])
    assert format_of_products(cuda, torch.float32) == "fp32"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_a_full_memory_is_recognised_by_all_who_report_it(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))

"""Choose the device that computes, and the number format of its matrix products."""

import os
import platform
import re
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from llamactl.errors import UsageError
from llamactl.hardware.throughput import time_call

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Compute capabilities from which on tensor cores multiply fp16 (Volta), and fp32 as TF32 (Ampere).
FP16_CORES, TF32_CORES = (7, 0), (8, 0)
# In the messages by which allocators, cuBLAS, cuDNN and Triton say that a device's memory is full; all but the first of these
# are plain RuntimeErrors.
FULL = re.compile(
    r"out of memory|can't allocate memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED|cublasCreate", re.IGNORECASE
)
DRIVER = Path("/proc/driver/nvidia/version")  # of NVIDIA's GPUs, on Linux
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Precision:
    """The number format of matrix products, with the reason for it; weights stay fp32 in training."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """Return bf16, fp16 or fp32."""
        return NAMES[self.dtype]

    def compute(self, device: torch.device) -> AbstractContextManager[object]:
        """Enter a context in which matrix products use this format."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(device.type, self.dtype)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the first GPU, else the CPU. Raises UsageError when it is not available.

    A GPU with a number becomes the current one, which timings and kernels of other packages use.
    """
    if name == "auto":
        usable = torch.cuda.is_available() and has_code_for(torch.device("cuda"))
        return torch.device("cuda" if usable else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("It is cpu, cuda, cuda:N or mps.")
        # "cuda:9" is a valid name on every machine: only an allocation shows that there is no such GPU.
        torch.empty(0, device=device)
        if device.type == "cuda" and not has_code_for(device):
            raise RuntimeError(f"This PyTorch has no code for a {torch.cuda.get_device_name(device)}.")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"There is no device {name!r}.", str(error).splitlines()[0], "Try: --device auto") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def has_code_for(device: torch.device) -> bool:
    """Check whether this build of PyTorch has code for a GPU: of its generation, or PTX that its driver compiles."""
    # CUDA 13 leaves out all before Turing. ROCm names its architectures otherwise.
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch) for arch in torch.cuda.get_arch_list()]
    if torch.version.hip or not all(built):
        return True
    own = torch.cuda.get_device_capability(device)
    found = [(arch[1], (int(arch[2]), int(arch[3]))) for arch in built if arch]
    return any(at <= own and (kind == "compute" or at[0] == own[0]) for kind, at in found)


def unused_gpu(name: str, device: torch.device) -> str:
    """Return why the device `name`, auto, became the CPU although this machine has an NVIDIA GPU; empty where it has none.

    A GPU that is hidden by CUDA_VISIBLE_DEVICES is unused on purpose.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    # WSL and containers may have only the tool.
    has_driver = DRIVER.exists() or shutil.which("nvidia-smi")
    if name != "auto" or device.type != "cpu" or hidden or not has_driver:
        return ""
    if torch.cuda.is_available():
        return f"This PyTorch has no code for this machine's {torch.cuda.get_device_name()}"
    built = f"is for CUDA {torch.version.cuda}, which its driver may not know" if torch.version.cuda else "has no CUDA"
    return f"This machine has an NVIDIA GPU, but this PyTorch {built}"


def processor_name() -> str:
    """Return the name of the CPU, as far as the system tells."""
    with suppress(OSError):
        for line in CPUINFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the format of a name; `auto` is bf16 if the hardware gains by it, fp16 on older GPUs, else fp32."""
    for dtype, known in NAMES.items():
        if name == known:
            return Precision(dtype, "as asked")
    if multiplies_bf16(device):
        if device.type == "cpu" and not gains_by_bf16():
            return Precision(torch.float32, "this cpu has bf16 instructions, but multiplies fp32 faster")
        return Precision(torch.bfloat16, f"this {device.type} has bf16 instructions")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP16_CORES:
        return Precision(torch.float16, "this cuda has fp16 instructions, but none for bf16")
    return Precision(torch.float32, f"this {device.type} has no bf16 instructions")


def format_of_products(device: torch.device, dtype: torch.dtype) -> str:
    """Name the format in which a device multiplies matrices of a dtype: tf32 where a GPU shortens fp32."""
    shortens = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_CORES
    is_tf32 = dtype == torch.float32 and shortens and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if is_tf32 else NAMES[dtype]


def multiplies_bf16(device: torch.device) -> bool:
    """Check whether the hardware has instructions for bf16 products."""
    # Emulation does not count: on a CPU it is 2.5 times slower than fp32.
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probe = getattr(torch.cpu, "get_capabilities", None)
    capabilities = probe() if probe else {}
    # The first two names are those of x86, the last one that of Arm.
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


@cache
def gains_by_bf16() -> bool:
    """Measure whether this CPU multiplies bf16 faster than fp32, in some 30 ms; Intel's without matrix units (AMX) may not."""
    fp32 = torch.randn(768, 768)
    bf16 = fp32.bfloat16()
    # In turn, and the best of each: other processes only make a try slower.
    tries = [(time_call(lambda: bf16 @ bf16, bf16.device), time_call(lambda: fp32 @ fp32, fp32.device)) for _ in range(4)]
    return min(first for first, _ in tries) < min(second for _, second in tries)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Check whether an error means that the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or bool(FULL.search(str(error)))

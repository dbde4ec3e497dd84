"""Which device computes, and in which number format, each with its reason."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from llamactl.errors import BadUsage

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Precision:
    """The number format of the matrix products; weights stay fp32 in training."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """bf16, fp16 or fp32."""
        return NAMES[self.dtype]

    def compute(self, device: torch.device) -> AbstractContextManager[object]:
        """A context in which matrix products use this format."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(device.type, self.dtype)


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU, else the CPU. Raises BadUsage when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadUsage(f"There is no device {name!r}.", str(error).splitlines()[0], "Try: --device auto") from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """The format of a name; `auto` is bf16 where the hardware multiplies it, fp32 elsewhere."""
    for dtype, known in NAMES.items():
        if name == known:
            return Precision(dtype, "as asked")
    if multiplies_bf16(device):
        return Precision(torch.bfloat16, f"this {device.type} has bf16 instructions")
    return Precision(torch.float32, f"this {device.type} has no bf16 instructions")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 products; emulated ones are 2.5 times slower than fp32 on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probe = getattr(torch.cpu, "get_capabilities", None)
    found = probe() if probe else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the device's memory is full; a CPU has no type of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

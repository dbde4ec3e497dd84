"""Which device computes, and in which number format, each with its reason."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from llamactl.errors import BadUsage


@dataclass(frozen=True)
class Precision:
    """The number format of the matrix products; weights stay fp32 in training."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """bf16 or fp32."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def compute(self, device: torch.device) -> AbstractContextManager[object]:
        """A context in which matrix products use this format."""
        return torch.autocast(device.type, self.dtype) if self.dtype == torch.bfloat16 else nullcontext()


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
    if name == "bf16":
        return Precision(torch.bfloat16, "as asked")
    if name == "fp32":
        return Precision(torch.float32, "as asked")
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

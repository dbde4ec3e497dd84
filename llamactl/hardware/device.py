"""Choose the device that computes, and the number format of its matrix products."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from llamactl.errors import UsageError

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


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
    """Return the device of a name; `auto` is the first GPU, else the CPU. Raises UsageError when it is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("It is cpu, cuda, cuda:N or mps.")
        # "cuda:9" is a valid name on every machine: only an allocation shows that there is no such GPU.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"There is no device {name!r}.", str(error).splitlines()[0], "Try: --device auto") from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the format of a name; `auto` is bf16 if the hardware has instructions for it, else fp32."""
    for dtype, known in NAMES.items():
        if name == known:
            return Precision(dtype, "as asked")
    if multiplies_bf16(device):
        return Precision(torch.bfloat16, f"this {device.type} has bf16 instructions")
    return Precision(torch.float32, f"this {device.type} has no bf16 instructions")


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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Check whether an error means that the device's memory is full."""
    # When a CPU's memory is full, torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

"""Measure the memory that this process uses, and what the system has left."""

import ctypes
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from llamactl.errors import OutOfSpace
from llamactl.hardware.device import is_out_of_memory

MEMINFO = Path("/proc/meminfo")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: allocated on the GPU, or resident in main memory for another device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # ru_maxrss is in bytes on macOS, in KiB on Linux.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def memory_for(what: str, device: torch.device, fix: str) -> Iterator[None]:
    """Raise OutOfSpace, with what needed the memory and a fix, where the memory of a device does not suffice for it."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfSpace(f"{device} ran out of memory for {what}.", str(error).splitlines()[0], fix) from error


def release_cached_memory(device: torch.device) -> None:
    """Return the memory that PyTorch, or glibc (`distributed.context.keep_freed_memory`), keeps for reuse."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()
    elif sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def resident_memory() -> int:
    """Return the resident memory of this process in bytes."""
    try:
        with Path("/proc/self/statm").open() as file:
            # The second field is the number of resident pages (proc_pid_statm(5)).
            return int(file.read().split()[1]) * resource.getpagesize()
    # Systems other than Linux have no /proc; the peak is the nearest that they tell.
    except OSError:
        return peak_memory(torch.device("cpu"))


def available_memory() -> int:
    """Return the bytes of main memory that the system can give, file cache included; all that it has where it says no more."""
    return _available_on_linux() or _available_on_macos() or os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()


def _available_on_linux() -> int:
    """Return MemAvailable of /proc/meminfo, which includes the file cache, in bytes; 0 without it."""
    with suppress(OSError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _available_on_macos() -> int:
    """Return the bytes of the pages that vm_stat(1) counts as free, or as file cache that nobody reads; 0 without it."""
    try:
        shown = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    size = re.search(r"page size of (\d+) bytes", shown)
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)", shown, re.MULTILINE)
    return int(size[1]) * sum(map(int, pages)) if size else 0

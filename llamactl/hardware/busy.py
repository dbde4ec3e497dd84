"""Notice other processes that keep the cores busy; beside them, threads sleep instead of spin, and ask for long turns."""

import ctypes
import os
import platform
import struct
import sys
import time
from pathlib import Path

from llamactl.hardware.limits import usable_cores

LOADAVG = Path("/proc/loadavg")
SAMPLES, INTERVAL = 10, 0.01  # readings of the load, and seconds between them
SLICE = 30_000_000  # nanoseconds of a turn on a core; the kernel's own choice is about 3 million, and 100 million is its limit
# sched_setattr(2) and sched_getattr(2), which Python has no function for, by processor.
SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
SETTINGS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")  # of OpenMP, by which people decide for themselves


def count_busy_threads() -> int:
    """Count the threads of other processes that ran, or waited for a core, at each of some moments; 0 where unknown."""
    lowest = _running_threads()
    for _ in range(SAMPLES - 1):
        if lowest:
            time.sleep(INTERVAL)
            lowest = min(lowest, _running_threads())
    return lowest


def _running_threads() -> int:
    """Count the runnable threads of the whole machine but for this one (proc_loadavg(5)); 0 where the system does not say."""
    try:
        runnable, _, _ = LOADAVG.read_text().split()[3].partition("/")
        return max(0, int(runnable) - 1)
    except (OSError, ValueError, IndexError):
        return 0


def crowding_threads() -> int:
    """Return the number of other busy threads if they leave too few cores for this process's own; else 0."""
    busy = count_busy_threads()
    return busy if busy + usable_cores() > (os.cpu_count() or 1) else 0


def respect_quota() -> None:
    """Start as many threads as a quota of CPU time has cores for, instead of one for each core of the machine.

    More of them use the quota up by waiting for each other. Call it before torch is imported.
    """
    if not _is_decided() and _has_quota():
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())


def _has_quota() -> bool:
    """Check whether a quota of CPU time leaves fewer cores than this process may run on."""
    return hasattr(os, "sched_getaffinity") and usable_cores() < len(os.sched_getaffinity(0))


def _is_decided() -> bool:
    """Check whether the settings of OpenMP were read already, or set by someone else than `respect_quota`."""
    names = [name for name in SETTINGS if name in os.environ]
    # Of a command that started this one, such as quickstart.
    is_own = names == ["OMP_NUM_THREADS"] and os.environ[names[0]] == str(usable_cores()) and _has_quota()
    return "torch" in sys.modules or (bool(names) and not is_own)


def avoid_crowding(recorded: int = 0) -> int:
    """Let threads sleep while they wait, and ask for long turns, if others crowd the cores; return the busy threads found.

    A run that is resumed keeps the number of threads that was `recorded` when it began, as other sums of floats have other
    last bits. Call it before torch is imported, which reads the settings once.
    """
    # Threads wait for each other at the end of every product. One whose core is shared arrives late, and as long as the
    # others spin, nothing else can run on theirs: beside four busy processes a run keeps an eighth of its speed. Those that
    # sleep take longer to wake up, which costs a third of the speed on an idle machine: hence not always.
    if _is_decided():
        return 0
    respect_quota()
    busy = crowding_threads()
    if 0 < recorded < usable_cores():
        os.environ["OMP_NUM_THREADS"] = str(recorded)
    if busy:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        request_long_turns()
    return busy


def request_long_turns() -> bool:
    """Ask the kernel to interrupt this process and its later threads seldom; return False where it can't be asked.

    A thread whose turn ends amid a product keeps the others waiting until its next one. Longer turns come as much later, so
    that no other process loses anything, and one that reacts to people still comes first (sched_setattr(2), Linux 6.12 and
    later; earlier kernels ignore it).
    """
    if sys.platform != "linux" or platform.machine() not in SYSTEM_CALLS:
        return False
    set_call, get_call = SYSTEM_CALLS[platform.machine()]
    libc, layout = ctypes.CDLL(None), struct.Struct("IIQiIQQQ")
    attributes = ctypes.create_string_buffer(layout.size)
    if libc.syscall(get_call, 0, attributes, layout.size, 0):
        return False
    size, policy, flags, nice, priority, _, deadline, period = layout.unpack(attributes.raw)
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):  # in others that field has another meaning
        return False
    layout.pack_into(attributes, 0, size, policy, flags, nice, priority, SLICE, deadline, period)
    return libc.syscall(set_call, 0, attributes, 0) == 0


def describe_busy(threads: int) -> str:
    """Describe how many threads of other processes are busy, and on how many cores."""
    return f"This machine is busy ({threads} other thread{'s' if threads > 1 else ''} on {os.cpu_count()} cores)"

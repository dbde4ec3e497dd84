"""Notice other processes that keep the cores busy, and use fewer threads beside them, which sleep instead of spin."""

import os
import sys
import time
from pathlib import Path

from llamactl.hardware.limits import usable_cores

LOADAVG = Path("/proc/loadavg")
SAMPLES, INTERVAL = 10, 0.01  # readings of the load, and seconds between them
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


def avoid_crowding(recorded: int = 0) -> int:
    """Use fewer threads, which sleep while they wait, if others crowd the cores; return the number of busy threads found.

    A run that is resumed keeps the number of threads that was `recorded` when it began, as other sums of floats have other
    last bits. Call it before torch is imported, which reads the settings once.
    """
    # Threads wait for each other at the end of every product. One whose core is shared arrives late, and as long as the
    # others spin, nothing else can run on theirs: beside four busy processes a run keeps an eighth of its speed. Those that
    # sleep take longer to wake up, which costs a third of the speed on an idle machine: hence not always.
    if "torch" in sys.modules or any(name in os.environ for name in SETTINGS):
        return 0
    busy, cores = crowding_threads(), usable_cores()
    threads = recorded or (threads_beside(busy) if busy else cores)
    if threads < cores:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if busy:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return busy


def threads_beside(busy: int) -> int:
    """Return the threads that keep most of a fair share beside busy ones: one for each free core, at least half of all.

    Two threads on cores that are shared wait for each other longer than one of them takes alone (docs/benchmarks.md).
    """
    cores = usable_cores()
    return max(1, min(cores, max((os.cpu_count() or 1) - busy, cores // 2)))


def describe_busy(threads: int) -> str:
    """Describe how many threads of other processes are busy, and on how many cores."""
    return f"This machine is busy ({threads} other thread{'s' if threads > 1 else ''} on {os.cpu_count()} cores)"

"""Read the limits of this process's memory and CPU time, set by control groups, ulimit and CPU affinity.

A container, a Slurm job or a systemd unit sets limits on any control group between this process's own and the root, in
version 1, version 2 or both (cgroups(7)). All groups on the way up count: the tightest limit holds.
"""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc/self")
UNLIMITED = 1 << 60  # bytes; version 1 writes a number near 2^63 for no limit


class _Mount(NamedTuple):
    """A mounted hierarchy of control groups: its version, controllers (version 1 only), the group at its top, mount point."""

    version: int
    controllers: frozenset[str]
    top: str
    point: Path


def free_memory() -> int | None:
    """Return the bytes that the tightest memory limit leaves, reclaimable file cache included; None without a limit."""
    limits = [pair for version, group in _groups("memory") for pair in _memory(version, group)]
    free = [limit - used for limit, used in [*limits, *_address_space()]]
    return max(0, min(free)) if free else None


def cpu_quota() -> float | None:
    """Return the tightest quota of CPU time, in CPUs; None without a quota."""
    return min((quota for version, group in _groups("cpu") for quota in _quota(version, group)), default=None)


def usable_cores() -> int:
    """Count the cores that this process may use, by its affinity and its quota of CPU time."""
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, round(cpu_quota() or cores)))


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the version and folder of each control group that has a controller, from this process's own up to the top."""
    mounts = [mount for line in _lines(PROC / "mountinfo") if (mount := _mount(line))]
    for line in _lines(PROC / "cgroup"):
        number, controllers, group = line.split(":", 2)
        # Version 2 is the line 0::/path (cgroups(7)).
        version = 2 if number == "0" and not controllers else 1
        if version == 2 or controller in controllers.split(","):
            for mount in mounts:
                if mount.version == version and (version == 2 or controller in mount.controllers):
                    yield from ((version, folder) for folder in _upwards(mount, group))


def _upwards(mount: _Mount, group: str) -> Iterator[Path]:
    """Yield the folders from a group up to the top of a mount."""
    # A container without a cgroup namespace sees the host's path of its group, and a mount whose top is that very group. A
    # group that is not below the top of the mount has no folder here: only the mount itself counts.
    top = mount.top.rstrip("/")
    below = (group == top or group.startswith(f"{top}/")) and ".." not in group.split("/")
    folder = mount.point / group.removeprefix(top).strip("/") if below else mount.point
    yield folder
    while folder != mount.point:
        folder = folder.parent
        yield folder


def _mount(line: str) -> _Mount | None:
    """Parse a line of mountinfo (proc_pid_mountinfo(5)); return None for another type of file system."""
    before, _, after = line.partition(" - ")
    fields, kind = before.split(), after.split()
    if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
        return None
    # mountinfo writes a space in a path as an octal escape.
    top, point = (field.replace("\\040", " ") for field in fields[3:5])
    return _Mount(2 if kind[0] == "cgroup2" else 1, frozenset(kind[2].split(",")), top, Path(point))


def _memory(version: int, group: Path) -> Iterator[tuple[int, int]]:
    """Yield each memory limit of a group with the memory in use, both in bytes."""
    # Above memory.high the kernel slows a process down instead of killing it, which training must avoid as well.
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    used = _number(group / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
    for name in names:
        limit = _number(group / name)
        if limit is not None and used is not None and limit < UNLIMITED:
            yield limit, used - _file_cache(group)


def _address_space() -> Iterator[tuple[int, int]]:
    """Yield the limit of `ulimit -v` with the address space in use, in bytes; clusters without control groups set it."""
    limit, pages = resource.getrlimit(resource.RLIMIT_AS)[0], " ".join(_lines(PROC / "statm")).split()
    if limit != resource.RLIM_INFINITY and pages:
        yield limit, int(pages[0]) * os.sysconf("SC_PAGE_SIZE")


def _file_cache(group: Path) -> int:
    """Return the bytes of file cache that the kernel can reclaim from a group and its children."""
    statistics = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
    # In version 1 only the names with total_ include children; version 2 has no such names and always includes them.
    return int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))


def _quota(version: int, group: Path) -> Iterator[float]:
    """Yield the quota of a group in CPUs; nothing without a quota."""
    if version == 2:
        # "max 100000" means no quota; the padding stands for a file that is missing or cut short.
        quota, period = [*(" ".join(_lines(group / "cpu.max"))).split(), "max", "0"][:2]
    else:
        quota, period = (str(_number(group / f"cpu.cfs_{name}_us") or 0) for name in ("quota", "period"))
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is no such file or it holds a word such as `max`."""
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; none if it can't be read, as on a system without control groups."""
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []

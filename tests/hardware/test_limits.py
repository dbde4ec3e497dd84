"""Limits that containers, Slurm and systemd set: the one place that knows them is `llamactl/hardware/limits.py`."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llamactl.hardware import limits

GB = 10**9
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretend to be a process of a group; files are given as `folder/file`, below the mount point."""

    def pretend(groups: str, mounts: dict[str, str], files: dict[str, str]) -> None:
        lines = [f"3{n} 29 0:{n} {spec} - {kind}" for n, (spec, kind) in enumerate(mounts.items())]
        (tmp_path / "cgroup").write_text(groups)
        (tmp_path / "mountinfo").write_text("\n".join(lines).replace("ROOT", str(tmp_path)) + "\n")
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content + "\n")
        monkeypatch.setattr(limits, "PROC", tmp_path)

    return pretend


V2 = {"/ ROOT/cg rw,nosuid shared:9": "cgroup2 cgroup2 rw,nsdelegate"}
V1 = {
    "/ ROOT/memory rw shared:10": "cgroup cgroup rw,memory",
    "/ ROOT/cpu rw shared:11": "cgroup cgroup rw,cpu,cpuacct",
}
V1_GROUPS = "5:memory:/slurm/uid_0/job_7/step_0\n4:cpu,cpuacct:/slurm/uid_0/job_7\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "free"),
    [
        # A container with a namespace of its own: all that it sees is its group.
        ("0::/\n", V2, {"cg/memory.max": str(8 * GB), "cg/memory.current": str(3 * GB)}, 5 * GB),
        ("0::/\n", V2, {"cg/memory.max": "max", "cg/memory.current": str(3 * GB)}, None),
        # Nested v2 groups (Slurm, systemd slices): the limit may be on any of them, and usage is each one's own.
        ("0::/job/step\n", V2, {
            "cg/job/step/memory.max": "max", "cg/job/step/memory.current": str(GB),
            "cg/job/memory.max": str(8 * GB), "cg/job/memory.current": str(6 * GB),
        }, 2 * GB),
        ("0::/job/step\n", V2, {
            "cg/job/step/memory.max": str(4 * GB), "cg/job/step/memory.current": str(GB),
            "cg/job/memory.max": str(8 * GB), "cg/job/memory.current": str(7 * GB),
        }, GB),
        # `memory.high` throttles all who go above it, long before `memory.max` kills them.
        ("0::/a\n", V2, {"cg/a/memory.max": str(8 * GB), "cg/a/memory.high": str(2 * GB), "cg/a/memory.current": str(GB)}, GB),
        # The file cache is given up first, as for MemAvailable.
        ("0::/a\n", V2, {
            "cg/a/memory.max": str(8 * GB), "cg/a/memory.current": str(7 * GB),
            "cg/a/memory.stat": f"anon 1\ninactive_file {4 * GB}",
        }, 5 * GB),
        # Version 1: a limit of each controller's own tree; a number near 2^63 is none.
        (V1_GROUPS, V1, {
            "memory/slurm/uid_0/job_7/step_0/memory.limit_in_bytes": "9223372036854771712",
            "memory/slurm/uid_0/job_7/step_0/memory.usage_in_bytes": str(GB),
            "memory/slurm/uid_0/job_7/memory.limit_in_bytes": str(16 * GB),
            "memory/slurm/uid_0/job_7/memory.usage_in_bytes": str(4 * GB),
        }, 12 * GB),
        # Docker with version 1: the path as the host sees it, the mount begins at that very group.
        ("6:memory:/docker/abc\n", {"/docker/abc ROOT/memory ro": "cgroup cgroup rw,memory"}, {
            "memory/memory.limit_in_bytes": str(2 * GB), "memory/memory.usage_in_bytes": str(GB),
            "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 2}",
        }, 3 * GB // 2),
        # Both side by side: v2 for systemd alone, memory in v1.
        ("6:memory:/job\n0::/init.scope\n", {**V2, "/ ROOT/memory rw": "cgroup cgroup rw,memory"}, {
            "memory/job/memory.limit_in_bytes": str(3 * GB), "memory/job/memory.usage_in_bytes": str(GB),
        }, 2 * GB),
        # More is used than a limit that was lowered allows; no mount, no group, files that make no sense.
        ("0::/a\n", V2, {"cg/a/memory.max": str(GB), "cg/a/memory.current": str(2 * GB)}, 0),
        ("0::/a\n", {}, {}, None),
        ("", V2, {}, None),
        ("0::/../../outside\n", V2, {"cg/memory.max": "many", "cg/memory.current": "few"}, None),
    ],
)  # fmt: skip
def test_memory_is_what_the_tightest_group_leaves(
    groups: str, mounts: dict[str, str], files: dict[str, str], free: int | None, machine: Machine
) -> None:
    machine(groups, mounts, files)
    assert limits.free_memory() == free


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/\n", V2, {"cg/cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", V2, {"cg/cpu.max": "max 100000"}, None),
        ("0::/job/step\n", V2, {"cg/job/step/cpu.max": "max 100000", "cg/job/cpu.max": "300000 100000"}, 3.0),
        (V1_GROUPS, V1, {
            "cpu/slurm/uid_0/job_7/cpu.cfs_quota_us": "50000", "cpu/slurm/uid_0/job_7/cpu.cfs_period_us": "100000",
        }, 0.5),
        (V1_GROUPS, V1, {
            "cpu/slurm/uid_0/job_7/cpu.cfs_quota_us": "-1", "cpu/slurm/uid_0/job_7/cpu.cfs_period_us": "100000",
        }, None),
        ("", {}, {}, None),
    ],
)  # fmt: skip
def test_a_quota_of_cpu_time_is_that_of_the_tightest_group(
    groups: str, mounts: dict[str, str], files: dict[str, str], quota: float | None, machine: Machine
) -> None:
    machine(groups, mounts, files)
    assert limits.cpu_quota() == quota
    cores = len(os.sched_getaffinity(0))
    assert limits.usable_cores() == (max(1, min(cores, round(quota))) if quota else cores)


def test_affinity_limits_the_cores(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("", {}, {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert limits.usable_cores() == 1


def test_training_plans_with_what_the_group_leaves(machine: Machine) -> None:
    from llamactl.planning.memory import free_main_memory

    machine("0::/job\n", V2, {"cg/job/memory.max": "3000000", "cg/job/memory.current": "1000000"})
    assert free_main_memory() == 2_000_000


def test_ulimit_limits_the_memory(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("0::/a\n", V2, {"cg/a/memory.max": str(8 * GB), "cg/a/memory.current": str(GB)})
    page = os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "statm").write_text(f"{GB // page} 1 1 1 0 1 0\n")
    monkeypatch.setattr("resource.getrlimit", lambda _: (3 * GB, 3 * GB))
    assert limits.free_memory() == pytest.approx(2 * GB, abs=page)


def test_prepare_starts_as_many_workers_as_cores_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamactl.cli import prepare
    from llamactl.corpus.sources import sample_source

    source = replace(sample_source(), pieces=((replace(sample_source().parts[0], size=1 << 40),),) * 100)
    for cores in (1, 3):
        monkeypatch.setattr(limits, "usable_cores", lambda cores=cores: cores)
        assert prepare._processes(source) == cores

"""Memory of a device: what is free, and what is given back."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from llamactl.hardware import memory
from llamactl.hardware.memory import available_memory, release_cached_memory
from llamactl.planning.memory import free_device_memory


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_cached_memory_is_given_back_to_the_device_that_it_is_of(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, name), "empty_cache", lambda name=name: asked.append(name))
    release_cached_memory(torch.device(device))
    assert asked == [device] * (device != "cpu")


@pytest.mark.parametrize(("held", "free"), [(3_000, 7_000), (11_000, 0)])
def test_apples_gpus_may_use_a_part_of_the_memory(held: int, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: held)
    assert free_device_memory(torch.device("mps")) == free


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            200000.
Pages inactive:                            3000.
Pages speculative:                          400.
Pages wired down:                         90000.
"""


def test_a_system_without_proc_says_what_it_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 0, VM_STAT))
    assert available_memory() == 13_400 * 16_384

    def missing(words: list[str], **_: object) -> None:
        raise FileNotFoundError(words[0])

    monkeypatch.setattr(subprocess, "run", missing)
    assert available_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

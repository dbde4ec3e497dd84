"""Whether this machine can train, and how well: each thing that training needs is tried, not looked up."""

import os
import platform
import subprocess
from functools import partial
from pathlib import Path

import torch

from llamactl.config import Config, TrainConfig
from llamactl.model.device import choose_device, choose_precision
from llamactl.presets import PRESETS
from llamactl.quantities import show_bytes
from llamactl.training.findings import Check, Finding
from llamactl.training.sizing import checkpoint_bytes, chunk_bytes, free_memory, state_bytes, window_bytes
from llamactl.training.surroundings import (
    OTHER_PLACE,
    WITHOUT_HUB,
    WITHOUT_VOCABULARY,
    disk,
    extras,
    hub,
    packages,
    python,
    vocabulary,
)
from llamactl.training.trials import PATIENCE, WITHOUT_COMPILING, attention, compiling, usual
from llamactl.training.world import World

NO_CUDA = "Install the build of PyTorch for your driver: https://pytorch.org/get-started/locally"
REINSTALL = "Install it as a package: pip install llamactl, or in its source pip install -e ."


def checks(asked: str, offline: bool) -> list[Check]:
    """Everything there is to look at, on the device that was asked for; raises BadUsage when that is not there."""
    device = choose_device(asked)
    world = World(device, choose_precision("auto", device))
    saved = checkpoint_bytes(usual("150m").model, "muon")
    return [
        Check("python", python, failing="note", fix=REINSTALL),
        Check("packages", packages, failing="note", fix=REINSTALL),
        Check("extras", extras, failing="note", fix=REINSTALL),
        Check("device", partial(on_gpu if device.type == "cuda" else off_gpu, device, asked), fix=NO_CUDA),
        Check("memory", partial(memory, world)),
        Check("threads", threads),
        Check("precision", partial(precision, world)),
        Check("attention", partial(attention, world), PATIENCE["attention"] + 10),
        Check("compile", partial(compiling, world), PATIENCE["compile"] + 10, fix=WITHOUT_COMPILING),
        Check("data", partial(disk, "data", 2.0 * TrainConfig().tokens), fix=OTHER_PLACE),
        Check("runs", partial(disk, "runs", 4.0 * saved), fix=OTHER_PLACE),
        Check("tokenizer", partial(vocabulary, offline), failing="note", fix=WITHOUT_VOCABULARY),
        *([] if offline else [Check("hub", hub, 6.0, "note", WITHOUT_HUB)]),
    ]


def on_gpu(device: torch.device, asked: str) -> Finding:
    """What the GPU is, after a sum on it."""
    torch.ones(8, device=device).sum().item()  # raises where this build has no code for the card
    about = torch.cuda.get_device_properties(device)
    built = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    driver = f", driver {seen[0]}" if (seen := _drivers()) else ""
    what = f"{device}, {about.name}, {show_bytes(about.total_memory)}, capability {about.major}.{about.minor}, {built}{driver}"
    return Finding("device", "fine", f"{what}, 1 of {torch.cuda.device_count()}")


def off_gpu(device: torch.device, asked: str) -> Finding:
    """What computes instead of a GPU, and whether there is one all the same."""
    instructions = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    what = f"{device}, {_processor()}{instructions}"
    if asked == "auto" and (seen := _drivers()):
        built = f"is for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        what += f"; there is an NVIDIA GPU with driver {seen[0]}, but this PyTorch {built}"
        return Finding("device", "wrong", what, NO_CUDA)
    return Finding("device", "fine", what)


def _drivers() -> list[str]:
    """The driver's version for each NVIDIA GPU; none where there is no such GPU or nothing that could tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()


def _processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def memory(world: World) -> Finding:
    """What is free, and the largest preset that can be trained in it."""
    free = free_memory(world)
    fitting = {name: needed for name in PRESETS if (needed := _needed(usual(name), world)) <= free}
    if not fitting:
        fix = "Stop what fills it, or train with a shorter window: --set model.context=64"
        return Finding("memory", "wrong", f"{show_bytes(free)} are free, too little for any preset", fix)
    largest = max(fitting, key=lambda name: fitting[name])
    return Finding("memory", "fine", f"{show_bytes(free)} are free, enough for the preset {largest} and what is smaller")


def _needed(config: Config, world: World) -> float:
    """Bytes of training one window at once, with activations recomputed."""
    fixed = state_bytes(config.model, config.optim.name) + chunk_bytes(config.model, world)
    return fixed + window_bytes(config.model, True, world)


def threads() -> Finding:
    """Threads of the products against the cores that this process may use."""
    used, cores = torch.get_num_threads(), _cores()
    what = f"{used} threads on {cores} cores"
    if used > cores:
        return Finding("threads", "note", f"{what}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    if used < cores and "OMP_NUM_THREADS" in os.environ:
        return Finding("threads", "note", f"{what}: OMP_NUM_THREADS asks for no more", "unset OMP_NUM_THREADS")
    return Finding("threads", "fine", what)


def _cores() -> int:
    """The cores that this process may use: of the machine, or by its affinity or its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def precision(world: World) -> Finding:
    """The number format of the products, with the reason for it."""
    return Finding("precision", "fine", f"{world.precision.name} products: {world.precision.reason}; fp32 weights")

"""Check whether this machine can train, and how well: each requirement is tested by a trial, not only looked up."""

import os
import subprocess
from functools import partial

import torch

from llamactl import DISTRIBUTION
from llamactl.config.presets import PRESETS
from llamactl.config.schema import Config
from llamactl.corpus.sources import OPENWEBTEXT_TOKENS
from llamactl.diagnostics.check import Check, CheckResult
from llamactl.diagnostics.compute import PATIENCE, WITHOUT_COMPILING, check_attention, check_compile, reference_model
from llamactl.diagnostics.system import (
    OTHER_PLACE,
    WITHOUT_HUB,
    WITHOUT_VOCABULARY,
    check_disk,
    check_extras,
    check_hub,
    check_packages,
    check_python,
    check_vocabulary,
)
from llamactl.distributed.context import World
from llamactl.hardware.busy import crowding_threads, describe_busy
from llamactl.hardware.device import choose_device, choose_precision, processor_name, unused_gpu
from llamactl.hardware.limits import usable_cores
from llamactl.planning.memory import checkpoint_bytes, chunk_bytes, free_memory, state_bytes, window_bytes
from llamactl.units import show_bytes

NO_CUDA = "Install the build of PyTorch for your driver: https://pytorch.org/get-started/locally"
REINSTALL = f"Install it as a package: pip install {DISTRIBUTION}, or in its source: pip install -e ."


def list_checks(asked: str, offline: bool) -> list[Check]:
    """List all checks for the requested device; raises UsageError when that device is not available."""
    device = choose_device(asked)
    world = World(device, choose_precision("auto", device))
    saved = checkpoint_bytes(reference_model("150m").model, "muon")
    return [
        Check("python", check_python, failing="note", fix=REINSTALL),
        Check("packages", check_packages, failing="note", fix=REINSTALL),
        Check("extras", check_extras, failing="note", fix=REINSTALL),
        Check("device", partial(check_gpu if device.type == "cuda" else check_cpu, device, asked), fix=NO_CUDA),
        Check("memory", partial(check_free_memory, world)),
        Check("threads", check_threads),
        Check("precision", partial(check_precision, world)),
        Check("attention", partial(check_attention, world), PATIENCE["attention"] + 10),
        Check("compile", partial(check_compile, world), PATIENCE["compile"] + 10, fix=WITHOUT_COMPILING),
        Check("data", partial(check_disk, "data", 2.0 * OPENWEBTEXT_TOKENS), fix=OTHER_PLACE),
        Check("runs", partial(check_disk, "runs", 4.0 * saved), fix=OTHER_PLACE),
        Check("tokenizer", partial(check_vocabulary, offline), failing="note", fix=WITHOUT_VOCABULARY),
        *([] if offline else [Check("hub", check_hub, 6.0, "note", WITHOUT_HUB)]),
    ]


def check_gpu(device: torch.device, asked: str) -> CheckResult:
    """Describe the GPU after running a sum on it."""
    torch.ones(8, device=device).sum().item()  # raises where this build of PyTorch does not support the GPU
    about = torch.cuda.get_device_properties(device)
    built = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    driver = f", driver {seen[0]}" if (seen := _drivers()) else ""
    what = f"{device}, {about.name}, {show_bytes(about.total_memory)}, capability {about.major}.{about.minor}, {built}{driver}"
    return CheckResult("device", "fine", f"{what}, 1 of {torch.cuda.device_count()}")


def check_cpu(device: torch.device, asked: str) -> CheckResult:
    """Describe the device used instead of a CUDA GPU, and check whether there is an NVIDIA GPU that PyTorch can't use."""
    instructions = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    what = f"{device}, {processor_name()}{instructions}"
    if (why := unused_gpu(asked, device)) and (seen := _drivers()):
        return CheckResult("device", "wrong", f"{what}. {why} (driver {seen[0]})", NO_CUDA)
    return CheckResult("device", "fine", what)


def _drivers() -> list[str]:
    """Return the driver version of each NVIDIA GPU; empty without such a GPU or without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()


def check_free_memory(world: World) -> CheckResult:
    """Find the free memory, and the largest preset that can be trained in it."""
    free = free_memory(world)
    fitting = {name: needed for name in PRESETS if (needed := _needed(reference_model(name), world)) <= free}
    if not fitting:
        fix = "Stop what fills it, or train with a shorter window: --set model.context=64"
        return CheckResult("memory", "wrong", f"{show_bytes(free)} are free, too little for any preset", fix)
    largest = max(fitting, key=lambda name: fitting[name])
    return CheckResult("memory", "fine", f"{show_bytes(free)} are free, enough for the preset {largest} and what is smaller")


def _needed(config: Config, world: World) -> float:
    """Estimate the bytes to train with micro-batches of one window and recomputed activations."""
    fixed = state_bytes(config.model, config.optim.name) + chunk_bytes(config.model, world, compiled=False)
    return fixed + window_bytes(config.model, True, world)


def check_threads() -> CheckResult:
    """Compare the threads of the matrix products with the cores that this process may use."""
    used, cores = torch.get_num_threads(), usable_cores()
    what = f"{used} threads on {cores} cores"
    if used > cores:
        return CheckResult("threads", "note", f"{what}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    if used < cores and "OMP_NUM_THREADS" in os.environ:
        return CheckResult("threads", "note", f"{what}: OMP_NUM_THREADS asks for no more", "unset OMP_NUM_THREADS")
    if busy := crowding_threads():
        fix = "Close what runs there, or let it be: training takes its share"
        return CheckResult("threads", "note", f"{what}. {describe_busy(busy)}", fix)
    return CheckResult("threads", "fine", what)


def check_precision(world: World) -> CheckResult:
    """Report the precision of the matrix products and the reason for it."""
    return CheckResult("precision", "fine", f"{world.precision.name} products: {world.precision.reason}; fp32 weights")

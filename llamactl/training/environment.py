"""What a run was made with: versions, device, threads, commit, command line."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llamactl import __version__
from llamactl.artifacts import Dataset
from llamactl.config import Config
from llamactl.errors import BadData
from llamactl.training.launch import launch
from llamactl.training.world import World

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pyarrow")
CHOSEN = ("micro_batch", "compile", "recompute", "deterministic")  # settings that a resumed run may change


def environment(config: Config, dataset: Dataset, world: World) -> dict[str, Any]:
    """Everything that a run was made with beside its config."""
    return {"command": command(), "job": launch().job, "commit": _commit(), **computed_on(config, dataset, world)}


def command() -> str:
    """What was typed to start this process."""
    return shlex.join(["llamactl", *sys.argv[1:]])


def computed_on(config: Config, dataset: Dataset, world: World) -> dict[str, Any]:
    """What can change a run's numbers, in their last bits at least."""
    cuda = world.device.type == "cuda"
    chosen = config.train.model_dump(include=set(CHOSEN))
    return {
        "llamactl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or platform.machine(),
        "instructions": "" if cuda else torch.backends.cpu.get_cpu_capability(),
        "precision": world.precision.name,
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "parallel": world.parallel,
        **chosen,
        "dataset": {"name": dataset.name, "digest": dataset.info.digest},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What a checkpoint was made with, beside what it is gone on with, where they differ."""
    before = {"processes": 1, "parallel": "one", **before}  # checkpoints that are older than these names
    names = (
        "llamactl", "python", "packages", "device", "instructions", "precision", "threads", "processes", "parallel", *CHOSEN,
    )  # fmt: skip
    pairs = {name: (before.get(name), now[name]) for name in names if name != "packages"}
    pairs |= {name: (before.get("packages", {}).get(name), now["packages"][name]) for name in now["packages"]}
    return tuple(f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new)


def same_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other data under the same name; raises BadData."""
    if before.get("dataset", {}).get("digest") != now["dataset"]["digest"]:
        what = f"The dataset {now['dataset']['name']} is not the one that this run was trained on."
        fix = "Prepare it as it was, or start a new run from the weights: llamactl train --init-from RUN"
        raise BadData(what, "Its digest is another one: it was prepared again, from other text or in another way.", fix)


def _commit() -> str:
    """The commit of a source checkout; empty for an installed package or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.strip()
    except OSError:
        return ""

"""What a run was made with: versions, device, threads, commit, command line."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llamactl import __version__
from llamactl.artifacts import Dataset
from llamactl.training.world import World

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pyarrow")


def environment(world: World, dataset: Dataset) -> dict[str, Any]:
    """Everything outside the config that can change a run's numbers."""
    cuda = world.device.type == "cuda"
    return {
        "command": shlex.join(["llamactl", *sys.argv[1:]]),
        "llamactl": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or platform.machine(),
        "precision": world.precision.name,
        "threads": torch.get_num_threads(),
        "dataset": {"name": dataset.name, "digest": dataset.info.digest},
    }


def _commit() -> str:
    """The commit of a source checkout; empty for an installed package or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.strip()
    except OSError:
        return ""

"""Provenance of a run: versions, device, threads, commit and command line."""

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
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.distributed.launch import read_launch
from llamactl.errors import DataError
from llamactl.hardware.device import processor_name
from llamactl.redact import redact_words
from llamactl.storage.records import look_up

PACKAGES = ("torch", "numpy", "safetensors", "tiktoken", "pyarrow")
# Settings that a resumed run may change and that change the order of its sums, so the last bits of its numbers.
NUMERIC_SETTINGS = ("micro_batch", "compile", "activation_checkpointing", "deterministic")


def collect_environment(config: Config, dataset: Dataset, world: World) -> dict[str, Any]:
    """Collect the provenance of a run: all that produced it except its config."""
    return {
        "command": redacted_command(),
        "job": read_launch().job,
        "commit": _commit(),
        **numeric_environment(config, dataset, world),
    }


def redacted_command() -> str:
    """Return the command line of this process, with values that look like secrets replaced."""
    return shlex.join(["llamactl", *redact_words(sys.argv[1:])])


def numeric_environment(config: Config, dataset: Dataset, world: World) -> dict[str, Any]:
    """Return all that can change the numbers of a run, if only in their last bits.

    `compile` is what the config asks for: the trainer corrects it where this machine has no compiler.
    """
    cuda = world.device.type == "cuda"
    settings = config.train.model_dump(include=set(NUMERIC_SETTINGS))
    return {
        "llamactl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or platform.machine(),
        "processor": processor_name(),
        "instructions": "" if cuda else torch.backends.cpu.get_cpu_capability(),
        "precision": world.precision.name,
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "parallel": world.parallel,
        **settings,
        "dataset": {"name": dataset.name, "digest": dataset.info.digest},
    }


def environment_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """List what differs between the environment of a checkpoint and the current one, as "name old -> new".

    Names that an older checkpoint lacks are unknown, not different.
    """
    # Checkpoints from before distributed training lack both keys.
    before = {"processes": 1, "parallel": "one", **before}
    names = (
        "llamactl", "python", "device", "processor", "instructions", "precision", "threads", "processes", "parallel",
        *NUMERIC_SETTINGS,
    )  # fmt: skip
    pairs = {name: (before[name], now[name]) for name in names if name in before}
    pairs |= {name: (look_up(before, "packages", name), version) for name, version in now["packages"].items()}
    return tuple(f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old not in (None, new))


def check_same_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise DataError if the dataset has another digest than the one in the environment of a checkpoint."""
    if look_up(before, "dataset", "digest") != now["dataset"]["digest"]:
        message = f"The dataset {now['dataset']['name']} is not the one that this run was trained on."
        fix = "Prepare it as it was, or start a new run from the weights: llamactl train --init-from RUN"
        raise DataError(message, "Its digest differs: it was prepared again, from other text or with other settings.", fix)


def _commit() -> str:
    """Return the commit of llamactl's own git checkout; empty for an installed package."""
    checkout = Path(__file__).resolve().parents[2]
    top = _git(checkout, "rev-parse", "--show-toplevel")
    # A virtual environment may lie in another repository: its commit says nothing about llamactl.
    is_checkout = bool(top) and Path(top).resolve() == checkout
    return _git(checkout, "rev-parse", "HEAD") if is_checkout and _git(checkout, "ls-files", "llamactl/__init__.py") else ""


def _git(folder: Path, *words: str) -> str:
    """Return the output of a git command in a folder; empty if it fails or git is missing."""
    # A timeout, as a folder on a network disk that is gone would block the start of training.
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""A mistake is told at once: before PyTorch, which takes seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

from llamactl.config.schema import build_config
from llamactl.hardware import device as hardware_device
from llamactl.runs.run_dir import RunDir
from tests.cli.inline import type_in
from tests.conftest import make_dataset
from tests.runs.test_metrics_log import step, write

COMMANDS = {
    "train": 3,
    "train --data nosuch": 3,
    "train --preset nosuch": 2,
    "train --set optim.lrr=1": 2,
    "train --set optim.lr=-1": 2,
    "train --tokens many": 2,
    "train --time soon": 2,
    "train --config nosuch.toml": 2,
    "train --resume": 3,
    "train --resume nosuch": 3,
    "plan --data nosuch": 3,
    "plan --preset nosuch": 2,
    "bench nosuch": 2,
    "serve nosuch": 3,
    "sample x": 3,
    "sample x --run nosuch@best": 3,
    "eval": 3,
    "surprise x": 3,
    "report nosuch": 3,
    "plot-loss": 3,
    "export gguf": 3,
    "export hf nosuch@10": 3,
    "export web nosuch": 3,
    "watch": 3,
    "prepare nosuch.txt": 3,
    "data show nosuch": 3,
    "runs show nosuch": 3,
}


NO_TORCH = (
    "--help", "runs list", "runs show a", "runs diff a b", "runs remove a --yes", "plot-loss a b", "report a b", "config",
    "config a", "data list", "report --help",
)  # fmt: skip


def typed(command: str, home: Path) -> str:
    """The exit code of a command in a process of its own, and whether PyTorch was imported."""
    lines = [
        "import sys",
        "from llamactl.cli import main",
        f"sys.argv = ['llamactl', *{command.split()!r}]",
        "try: main()",
        "except SystemExit as ended: print(); print(ended.code, 'torch' in sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=home, capture_output=True, text=True, check=True)
    return f"{done.stdout.splitlines()[-1]} {done.stderr}"


def test_a_gpu_that_is_left_unused_is_told_before_training(home: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(home / "data" / "addresses", corpus)
    monkeypatch.setattr(hardware_device, "unused_gpu", lambda name, _: f"This machine has a GPU, asked for {name}")
    answer = type_in("train", "--preset", "tiny", "--tokens", "4096", "--set", "train.device=cpu", "--dry-run")
    assert "This machine has a GPU, asked for cpu: it trains on the CPU." in answer.err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_mistake_waits_for_torch(command: str, home: Path) -> None:
    assert typed(command, home).startswith(f"{COMMANDS[command]} False")


@pytest.mark.parametrize("command", NO_TORCH)
def test_what_needs_no_torch_does_not_import_it(command: str, home: Path) -> None:
    for name in "ab":
        run = RunDir.from_name(name)
        run.start(build_config([{"data": {"name": "d"}, "train": {"tokens": 99, "tokens_per_step": 9}}]), {"device": "cpu"})
        write(run.metrics_path, *map(step, range(1, 10)))
    assert typed(command, home).startswith("0 False")

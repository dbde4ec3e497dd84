"""A mistake is told at once: before PyTorch, which takes seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.io import open_model, save_checkpoint
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.cli.preconditions import import_torch_and_verify
from llamactl.config.schema import ModelConfig, build_config
from llamactl.errors import DataError
from llamactl.hardware import device as hardware_device
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import byte_tokenizer
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


SHAPE = ModelConfig(n_layers=1, dim=64, n_heads=1, n_kv_heads=1, head_dim=64, ffn_dim=64, context=32, vocab_size=384)


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


@pytest.fixture
def steps(home: Path) -> RunDir:
    """A run with two checkpoints that were not trained."""
    run = RunDir.from_name("r")
    run.start(build_config([{"data": {"name": "d"}}]), {})
    for number in (3, 7):
        state = State(step=number, tokens=9, seconds=1.0)
        save_checkpoint(run.checkpoint(number), take_snapshot(Llama(SHAPE), []), SHAPE, byte_tokenizer(), state)
    return run


def test_a_checkpoint_is_verified_while_torch_is_imported(steps: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its files are not hashed a second time, and what was not verified is, where it is opened."""
    names = {"r": 7, "r@3": 3, str(steps.checkpoint(3)): 3}
    found = {name: import_torch_and_verify(name) for name in names}
    assert {name: list(verified) for name, verified in found.items()} == {
        name: [steps.checkpoint(step)] for name, step in names.items()
    }
    device = torch.device("cpu")
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_io, "verify_model", lambda path: pytest.fail(f"{path} is verified again"))
        assert [open_model(name, device, found[name])[3].step for name in names] == [7, 3, 3]
    (steps.checkpoint(7) / "config.json").write_text("{}")
    found = {name: import_torch_and_verify(name) for name in ("r", "r@7", "nosuch", "hf:no/such")}
    assert [list(verified) for verified in found.values()] == [[steps.checkpoint(3)], [], [], []]
    assert open_model("r", device, found["r"])[3].step == 3
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        open_model("r@7", device, found["r@7"])


def test_verifying_needs_no_torch() -> None:
    """Else the thread would wait for the import that it is meant to run beside."""
    lines = "import sys, llamactl.checkpoint.select; assert not {'torch', 'llamactl.model.llama'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", lines], check=True)

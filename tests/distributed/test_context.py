"""What a command sets on its device before it does anything."""

import subprocess
import sys

import pytest
import torch

from llamactl.config.schema import TrainConfig
from llamactl.distributed.context import init_device


def test_a_device_is_set_up_without_the_compiler() -> None:
    """`torch.use_deterministic_algorithms` imports it, a second's work, even where it changes nothing."""
    code = """
import sys
from llamactl.config.schema import TrainConfig
from llamactl.distributed.context import init_device
init_device(TrainConfig(device="cpu"))
print("torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False False", done.stderr


def test_deterministic_algorithms_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for asked in (True, True, False, False):
        init_device(TrainConfig(device="cpu", deterministic=asked))
        assert torch.are_deterministic_algorithms_enabled() == asked

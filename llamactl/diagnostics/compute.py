"""Checks that need a trial: which attention kernel is launched, and whether torch.compile works here.

Each trial runs in a process of its own, because it may hang, crash or print unwanted output.
"""

import json
import subprocess
import sys
import time
from secrets import randbelow
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.diagnostics.check import CheckResult, describe_error
from llamactl.distributed.context import World
from llamactl.hardware.device import choose_precision
from llamactl.model.attention import attention, packs_documents, sdpa
from llamactl.storage.records import to_json

GPT2_ROWS = 50_304  # size of GPT-2's vocabulary, padded to a multiple of 128
PATIENCE = {"attention": 60.0, "compile": 240.0}  # seconds; the first compilation also precompiles headers
APART = "import sys; from llamactl.diagnostics.compute import run_check; sys.stdout.write('\\n' + run_check(*sys.argv[1:]))"
WITHOUT_COMPILING = "Train without it: llamactl train --set train.compile=off"

# A part of the compiler's error message, and how to install what is missing.
BRINGS = {
    "Python.h": "Install Python's headers (Debian, Ubuntu: apt install python3-dev)",
    "Cxx": "Install a C++ compiler (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)",
    "C compiler": "Install a C compiler (Debian, Ubuntu: apt install gcc)",
    "riton": "pip install triton",
}


def reference_model(name: str) -> Config:
    """Build the config of a preset with GPT-2's vocabulary."""
    return build_config([preset_settings(name), {"model": {"vocab_size": GPT2_ROWS}}])


def check_attention(world: World) -> CheckResult:
    """Find the kernels that attention launches, for the shape of the preset 150m and in the precision of training."""
    found = _apart("attention", world)
    if "error" in found:
        return CheckResult("attention", "wrong", found["error"], "Training would fail as well. Try: --device cpu")
    launched, used, model = found["library"], found["ours"], reference_model("150m").model
    what = f"PyTorch launches {' '.join(launched) or 'no kernel of its own'} in {world.precision.name}; at a context of "
    what += f"{model.context:,} llamactl uses {'the same' if used else 'its own blockwise kernel, faster on a CPU'}"
    packs = packs_documents(world.device, world.precision.dtype, model.head_dim, model.context)
    what += f", for --separate-documents {'one kernel without a mask' if packs else 'with a mask'}"
    if any(name.endswith("_math") for name in used):
        return CheckResult(
            "attention", "note", what, "No fast kernel fits this device: --set train.precision=bf16 may find one"
        )
    return CheckResult("attention", "fine", what)


def check_compile(world: World) -> CheckResult:
    """Check whether torch.compile works."""
    found = _apart("compile", world)
    if "error" in found:
        brings = [words for missing, words in BRINGS.items() if missing in found["whole"]]
        return CheckResult("compile", "wrong", found["error"], "; ".join([*brings[:1], WITHOUT_COMPILING]))
    return CheckResult("compile", "fine", f"torch.compile takes {found['seconds']:.1f} s here, and gives the same numbers")


def _apart(trial: str, world: World) -> dict[str, Any]:
    """Run a trial in another process and return its result; raises OSError when it fails or times out."""
    line = [sys.executable, "-c", APART, trial, str(world.device)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE[trial])
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"no answer in {PATIENCE[trial]:g} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise ChildProcessError(f"the process that tried it ended with {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_check(trial: str, device: str) -> str:
    """Run a trial in this process; return the result, or the error, as JSON."""
    try:
        return to_json((_attended if trial == "attention" else _compiled)(torch.device(device)))
    except Exception as error:  # torch has no exception type for a missing compiler
        return to_json({"error": describe_error(error), "whole": str(error)})


def _attended(device: torch.device) -> dict[str, list[str]]:
    """Find the kernels that PyTorch's attention and llamactl's launch, by the names of PyTorch's operators."""
    model, dtype = reference_model("150m").model, choose_precision("auto", device).dtype
    shapes = [(1, heads, model.context, model.head_dim) for heads in (model.n_heads, model.n_kv_heads, model.n_kv_heads)]
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes)
    found = {}
    for name, attending in (("library", sdpa), ("ours", attention)):
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as watched:
            attending(q, k, v)
        names = {event.key.removeprefix("aten::") for event in watched.key_averages()}
        found[name] = sorted(name for name in names if name.startswith("_scaled_dot_product"))
    return found


def _compiled(device: torch.device) -> dict[str, float]:
    """Measure the seconds to compile and run a small function; raises ValueError where the results differ from eager mode.

    The size of its input is random, so that no cache contains the compiled code.
    """
    x = torch.linspace(0, 1, 64 + randbelow(1 << 20), device=device)
    started = time.perf_counter()
    differ = (torch.compile(_trial, dynamic=False)(x) - _trial(x)).abs().max().item()
    if not differ < 1e-5:
        raise ValueError(f"compiled code gives other numbers, by {differ:.2g}")
    return {"seconds": time.perf_counter() - started}


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.exp() * x + 1

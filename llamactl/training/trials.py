"""What only a trial can tell: which attention kernel is launched, and whether torch.compile works here.

Each trial has a process of its own, as what it tries may hang, crash, or print what nobody asked for.
"""

import json
import subprocess
import sys
import time
from secrets import randbelow
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llamactl.config import Config, build, preset
from llamactl.model.attention import attend, fused
from llamactl.model.device import choose_precision
from llamactl.training.findings import Finding, described
from llamactl.training.world import World

GPT2_ROWS = 50_304  # ids of GPT-2's vocabulary, up to a multiple of 128
PATIENCE = {"attention": 60.0, "compile": 240.0}  # seconds: compiling for the first time prepares headers as well
APART = "import sys; from llamactl.training.trials import carry_out; sys.stdout.write('\\n' + carry_out(*sys.argv[1:]))"
WITHOUT_COMPILING = "llamactl train --set train.compile=off goes without"

# What a compiler's complaint is about, and what brings what is missing.
BRINGS = {
    "Python.h": "Install Python's headers (Debian, Ubuntu: apt install python3-dev)",
    "Cxx": "Install a C++ compiler (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)",
    "C compiler": "Install a C compiler (Debian, Ubuntu: apt install gcc)",
    "riton": "pip install triton",
}


def usual(name: str) -> Config:
    """A preset with GPT-2's vocabulary."""
    return build([preset(name), {"model": {"vocab_size": GPT2_ROWS}}])


def attention(world: World) -> Finding:
    """The kernels that attention came down to, in the shape of the preset 150m and the format of training."""
    found = _apart("attention", world)
    if "error" in found:
        return Finding("attention", "wrong", found["error"], "Training would fail as well. Try: --device cpu")
    launched, used, context = found["library"], found["ours"], usual("150m").model.context
    what = f"PyTorch launches {' '.join(launched) or 'no kernel of its own'} in {world.precision.name}; at a context of "
    what += f"{context:,} llamactl uses {'the same' if used else 'a staircase of dense products, faster on a CPU'}"
    if any(name.endswith("_math") for name in used):
        return Finding("attention", "note", what, "No fast kernel fits this device: --set train.precision=bf16 may find one")
    return Finding("attention", "fine", what)


def compiling(world: World) -> Finding:
    """Whether torch.compile works."""
    found = _apart("compile", world)
    if "error" in found:
        brings = [words for missing, words in BRINGS.items() if missing in found["whole"]]
        return Finding("compile", "wrong", found["error"], "; ".join([*brings[:1], WITHOUT_COMPILING]))
    return Finding("compile", "fine", f"torch.compile takes {found['seconds']:.1f} s here, and gives the same numbers")


def _apart(trial: str, world: World) -> dict[str, Any]:
    """What came of a trial in another process; raises OSError when nothing did."""
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


def carry_out(trial: str, device: str) -> str:
    """Try it, here and now; the answer is JSON, of what was found or of the error."""
    try:
        return json.dumps((_attended if trial == "attention" else _compiled)(torch.device(device)))
    except Exception as error:  # torch has no type of its own for "there is no compiler"
        return json.dumps({"error": described(error), "whole": str(error)})


def _attended(device: torch.device) -> dict[str, list[str]]:
    """The kernels of PyTorch's attention and of ours, as PyTorch calls them."""
    model, dtype = usual("150m").model, choose_precision("auto", device).dtype
    shapes = [(1, heads, model.context, model.head_width) for heads in (model.heads, model.kv_heads, model.kv_heads)]
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes)
    found = {}
    for name, attending in (("library", fused), ("ours", attend)):
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as watched:
            attending(q, k, v)
        names = {event.key.removeprefix("aten::") for event in watched.key_averages()}
        found[name] = sorted(name for name in names if name.startswith("_scaled_dot_product"))
    return found


def _compiled(device: torch.device) -> dict[str, float]:
    """The time to compile a small function, of a size that no cache knows; raises ValueError where the numbers differ."""
    x = torch.linspace(0, 1, 64 + randbelow(1 << 20), device=device)
    started = time.perf_counter()
    differ = (torch.compile(_trial, dynamic=False)(x) - _trial(x)).abs().max().item()
    if not differ < 1e-5:
        raise ValueError(f"compiled code gives other numbers, by {differ:.2g}")
    return {"seconds": time.perf_counter() - started}


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.exp() * x + 1

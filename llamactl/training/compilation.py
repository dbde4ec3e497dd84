"""torch.compile, block by block: one small graph that every layer shares, so that starting takes seconds."""

from contextlib import AbstractContextManager

import torch

from llamactl.model.llama import Llama


def compile_blocks(model: Llama) -> str:
    """Have the model's blocks compiled when they are first called; the answer says why not, and is empty when they are.

    Names and weights stay as they are. Compiling needs a C++ compiler on a CPU and Triton on a GPU: a trial tells,
    whatever is missing.
    """
    try:
        torch.compile(_trial, dynamic=False)(torch.zeros(8, device=model.lm_head.weight.device))
    except Exception as error:  # torch has no type of its own for "there is no compiler"
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    for block in model.model.layers:
        block.compile(dynamic=False)
    return ""


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.exp() * x + 1


def eagerly() -> AbstractContextManager[object]:
    """A context without compiled code: a shape that comes once, such as a prompt's, takes longer to compile than to run."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance

"""torch.compile per block and for the loss: layers share one small graph, so that it takes seconds and weights keep names."""

from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch

from llamactl.model.distillation import taught_chunk
from llamactl.model.objective import NextToken, fused_chunk
from llamactl.training.compile_cache import guard_compilation


def compile_objective(objective: NextToken) -> str:
    """Set each block, and the loss, to be compiled at its first call; return why that is impossible, or an empty string.

    Compiling needs a C++ compiler on a CPU and Triton on a GPU; a trial with a tiny function shows if either is missing.
    """
    model = objective.model
    try:
        with guard_compilation():
            torch.compile(_trial_function, dynamic=False)(torch.zeros(8, device=model.lm_head.weight.device))
    # Any error: torch has no exception type for a missing compiler.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    teachers = objective.teachers.models if objective.teachers else ()
    for block in chain.from_iterable(each.model.layers for each in (model, *teachers)):
        block.compile(dynamic=False)
    objective.fused_chunk = torch.compile(fused_chunk, dynamic=False)
    if objective.teachers:
        objective.teachers.chunk = torch.compile(taught_chunk, dynamic=False)
    return ""


class CompileGuard:
    """Guard the steps that compile code: the first one with micro-batches of a size."""

    def __init__(self, compiles: bool) -> None:
        """Start without any code; of a model that is not compiled, no step is guarded."""
        self._compiles, self._micro_batch = compiles, 0

    def __call__(self, micro_batch: int) -> AbstractContextManager[None]:
        """Return the context of a step."""
        is_new, self._micro_batch = micro_batch != self._micro_batch, micro_batch
        return guard_compilation() if self._compiles and is_new else nullcontext()


def _trial_function(x: torch.Tensor) -> torch.Tensor:
    return x.exp() * x + 1


def disable_compile() -> AbstractContextManager[object]:
    """Return a context in which compiled code runs eagerly, for shapes that are too rare to compile, such as a prompt's."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance

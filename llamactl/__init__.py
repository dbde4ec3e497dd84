"""llamactl: train a real Llama from scratch, on your own machine, and understand every step.

In Python, the stages are functions; docs/python.md shows them at work:

    prepare    text, or a list of documents, into a dataset
    train      a run: iterate it for events
    load       a model and its tokenizer: RUN, a folder, hf:ORG/NAME
    generate   text after a prompt
    evaluate   loss and bits per byte of a model on text
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamactl.api import Model, Training, evaluate, generate, load, prepare, train
    from llamactl.corpus.dataset import Dataset
    from llamactl.errors import UserError

__all__ = ["Dataset", "Model", "Training", "UserError", "evaluate", "generate", "load", "prepare", "train"]
__version__ = "0.1.0"

# The name to install by. `llamactl` on PyPI is another program, LlamaIndex's, with a command of the same name.
DISTRIBUTION = "llamactl-train"

_ELSEWHERE = {"Dataset": "llamactl.corpus.dataset", "UserError": "llamactl.errors"}


def __getattr__(name: str) -> Any:
    """Import what is named when it is first used: PyTorch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'llamactl' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "llamactl.api")), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]


def install_command(extras: str) -> str:
    """Return the command that installs some extras, "gguf,eval": from the checkout where this is one, else by name."""
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").exists():
        return f"pip install '{DISTRIBUTION}[{extras}]'"
    return f"pip install -e '{'.' if checkout == Path.cwd() else checkout}[{extras}]'"

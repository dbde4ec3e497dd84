"""llamactl: train a real Llama from scratch, on your own machine, and understand every step."""

from pathlib import Path

__version__ = "0.1.0"

# The name to install by. `llamactl` on PyPI is another program, LlamaIndex's, with a command of the same name.
DISTRIBUTION = "llamactl-train"


def install_command(extras: str) -> str:
    """Return the command that installs some extras, "gguf,eval": from the checkout where this is one, else by name."""
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").exists():
        return f"pip install '{DISTRIBUTION}[{extras}]'"
    return f"pip install -e '{'.' if checkout == Path.cwd() else checkout}[{extras}]'"

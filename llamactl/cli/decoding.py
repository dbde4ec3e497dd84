"""What the commands that decode do first: weights in a format, and the native step, which is compiled on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from llamactl.model.llama import Llama


def convert_for_decoding(model: "Llama", kind: str) -> "Llama":
    """Convert the weights of a model to f32, bf16, int8 or int4, with the native step ready."""
    from llamactl.model.convert import convert_weights

    show_native_step(model.model.embed_tokens.weight.device)
    return convert_weights(model, kind)


def show_native_step(device: "torch.device") -> None:
    """Compile the native step where the device is the CPU and there is none yet; say it where that is not possible."""
    from llamactl.cli.ui.console import progress
    from llamactl.model.native_build import load_library

    if device.type != "cpu":
        return
    with progress.status("compiling the decoding step …"):
        notice = load_library().notice
    if notice:
        progress.print(notice, style="dim")

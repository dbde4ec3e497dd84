"""Print samples while they are generated."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamactl.inference.generate import Completion, Request


def strip_prompt(prompt: str) -> str:
    """Strip spaces at the end of a prompt, and say so."""
    from llamactl.cli.ui.console import progress

    # BPE words begin with a space: one at the end is a token of its own, after which a model rarely saw text.
    stripped = prompt.rstrip(" ")
    if stripped != prompt:
        progress.print(
            "(removed the space at the end of the prompt, as a BPE word begins with one; --raw-prompt keeps it)", style="dim"
        )
    return stripped


def show_samples(steps: "Iterator[list[Completion]]", request: "Request", as_json: bool, logs: bool = False) -> None:
    """Print a single sample token by token, several samples or JSON when all are complete."""
    from llamactl.cli.ui.console import output, show_json

    streaming = len(request.prompts) * request.samples == 1 and not as_json
    if streaming:
        output.print_data((request.prompts[0], "bold"), end="")
    samples: list[Completion] = []
    for samples in steps:
        if streaming:
            output.print_data(samples[0].new, end="")
    if streaming:
        output.print()
        return
    for sample in samples:
        if as_json:
            record = {"prompt": sample.prompt, "sample": sample.sample, "seed": request.seed, "text": sample.text}
            record |= {"tokens": sample.tokens, "log_probabilities": sample.log_probabilities} if logs else {}
            show_json(record)
        else:
            number = f"[{sample.sample}] " if request.samples > 1 else ""
            output.print_data((number, "dim"), (sample.prompt, "bold"), sample.text)

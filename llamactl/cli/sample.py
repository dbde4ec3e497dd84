"""llamactl sample: a checkpoint becomes text."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamactl.inference.generate import Request


def sample(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="Texts to go on from.", show_default=False)],
    run: Annotated[str, typer.Option(help="RUN, RUN@STEP or RUN@best.", show_default="the newest")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; higher is wilder.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Pick among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Pick among the likeliest that hold this share; 1: all.")] = 0.95,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="Drop what is less likely than this share of the best.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each prompt.")] = 1,
    raw_prompt: Annotated[bool, typer.Option("--raw-prompt", help="Keep spaces at the end of the prompt.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print each sample as a line of JSON.")] = False,
) -> None:
    """Let a model go on from a text."""
    from llamactl import checkpoint
    from llamactl.cli.screen import progress, show_next
    from llamactl.inference.generate import Request, generate
    from llamactl.model.decode import Picker
    from llamactl.model.device import choose_device
    from llamactl.quantities import show_count
    from llamactl.spelling import safe

    path = checkpoint.find(run)
    model, tokenizer, state = checkpoint.load_model(path, choose_device(device))
    loss = "" if state.validation_loss is None else f", validation loss {state.validation_loss:.3f}"
    progress.print(f"{safe(path.parents[1].name)} at step {state.step:,}{loss}", markup=False, style="dim")
    pick = Picker(temperature, top_k, top_p, min_p)
    for prompt in prompts:
        request = Request(prompt if raw_prompt else trimmed(prompt), max_new_tokens, n, seed, pick)
        show(generate(model, tokenizer, request), request, json)
    show_next(f"llamactl train --tokens {show_count(10 * state.tokens)}", why="A longer run")


def trimmed(prompt: str) -> str:
    """The prompt without spaces at its end, which as tokens of their own derail a BPE model: words bring their own."""
    from llamactl.cli.screen import progress

    bare = prompt.rstrip(" ")
    if bare != prompt:
        progress.print(
            "(the space at the end of the prompt is left off, as words bring their own; --raw-prompt keeps it)", style="dim"
        )
    return bare


def show(pieces: "Iterator[list[str]]", request: "Request", as_json: bool) -> None:
    """Print a single sample as it comes, several or JSON when they are whole."""
    from json import dumps

    from rich.text import Text

    from llamactl.cli.screen import output
    from llamactl.spelling import safe

    clean = safe if output.is_terminal else str
    streaming = request.samples == 1 and not as_json
    if streaming:
        output.print(Text(clean(request.prompt), style="bold"), end="")
    texts = [""] * request.samples
    for piece in pieces:
        texts = [text + new for text, new in zip(texts, piece, strict=True)]
        if streaming:
            output.print(Text(clean(piece[0])), end="")
    if streaming:
        output.print()
        return
    for number, text in enumerate(texts, start=1):
        if as_json:
            output.print(dumps({"prompt": request.prompt, "sample": number, "seed": request.seed, "text": text}), markup=False)
        else:
            output.print(Text.assemble((f"[{number}] ", "dim"), (clean(request.prompt), "bold"), clean(text)))

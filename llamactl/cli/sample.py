"""llamactl sample: a checkpoint becomes text."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.settings import MACHINE, SAID, DeviceName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamactl.inference.generate import Request, Said
    from llamactl.model.llama import Llama
    from llamactl.tokenizer import Tokenizer

# Headings under which options stand in the help.
ASKED, DRAWN = "What is asked", "How tokens are drawn"

PROMPT_HELP = "Texts to go on from; with none, on a terminal, you are asked for one after another."
WEIGHTS_HELP = "Format of the weights: smaller ones are faster, int8 is a little less exact."


def sample(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help=PROMPT_HELP, show_default=False)] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="A prompt a line.", show_default=False, rich_help_panel=ASKED),
    ] = None,
    run: Annotated[
        str,
        typer.Option(
            help="RUN, RUN@STEP or RUN@best.",
            show_default="the newest",
            autocompletion=completion.checkpoints,
            rich_help_panel=ASKED,
        ),
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.", rich_help_panel=ASKED)] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; higher is wilder.", rich_help_panel=DRAWN)
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Pick among the k likeliest; 0: all.", rich_help_panel=DRAWN)] = 0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Pick among the likeliest that hold this share; 1: all.", rich_help_panel=DRAWN)
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(min=0, max=1, help="Drop what is less likely than this share of the best.", rich_help_panel=DRAWN)
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(min=1, help="Above 1: what was said is less likely again.", rich_help_panel=DRAWN)
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; repeatable.", show_default=False, rich_help_panel=ASKED)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.", rich_help_panel=DRAWN)] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each prompt.", rich_help_panel=ASKED)] = 1,
    raw_prompt: Annotated[
        bool, typer.Option("--raw-prompt", help="Keep spaces at the end of the prompt.", rich_help_panel=ASKED)
    ] = False,
    weights: Annotated[Literal["f32", "bf16", "int8"], typer.Option(help=WEIGHTS_HELP, rich_help_panel=MACHINE)] = "f32",
    device: DeviceName = "auto",
    log_probabilities: Annotated[
        bool, typer.Option("--log-probabilities", help="With --json: of each token.", rich_help_panel=SAID)
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each sample as a line of JSON.", rich_help_panel=SAID)] = False,
) -> None:
    """Let a model go on from a text."""
    from llamactl import checkpoint
    from llamactl.cli.conversation import converse
    from llamactl.cli.screen import progress, show_next
    from llamactl.errors import BadUsage
    from llamactl.inference.generate import Request
    from llamactl.model.decode import Picker
    from llamactl.model.device import choose_device
    from llamactl.model.quantise import stored
    from llamactl.quantities import show_count
    from llamactl.spelling import safe

    texts = [*(prompts or []), *(lines(prompts_file) if prompts_file else [])]
    if not texts and not sys.stdin.isatty():
        raise BadUsage("There is no prompt.", "", 'Example: llamactl sample "California is "')
    path = checkpoint.find(run)
    model, tokenizer, state = checkpoint.load_model(path, choose_device(device))
    model = stored(model, weights)
    loss = "" if state.validation_loss is None else f", validation loss {state.validation_loss:.3f}"
    progress.print(f"{safe(path.parents[1].name)} at step {state.step:,}{loss}", markup=False, style="dim")
    pick = Picker(temperature, top_k, top_p, min_p, repetition_penalty)
    asked = texts if raw_prompt else [trimmed(text) for text in texts]
    request = Request(tuple(asked), max_new_tokens, n, seed, tuple(stop or ()), pick)
    if not texts:
        converse(model, tokenizer, request)
        return
    spoken(model, tokenizer, request, json, log_probabilities)
    show_next(f"llamactl train --tokens {show_count(10 * state.tokens)}", why="A longer run")


def lines(path: Path) -> list[str]:
    """The prompts of a file; raises BadData where it can't be read."""
    from llamactl.errors import BadData

    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path} can't be read.", str(error)) from error


def trimmed(prompt: str) -> str:
    """The prompt without spaces at its end, which as tokens of their own derail a BPE model: words bring their own."""
    from llamactl.cli.screen import progress

    bare = prompt.rstrip(" ")
    if bare != prompt:
        progress.print(
            "(the space at the end of the prompt is left off, as words bring their own; --raw-prompt keeps it)", style="dim"
        )
    return bare


def spoken(model: "Llama", tokenizer: "Tokenizer", request: "Request", as_json: bool, logs: bool) -> None:
    """Generate and print; a prompt that will not fit with what is to come is named before."""
    from llamactl.cli.screen import progress
    from llamactl.inference.generate import generate

    context = model.config.context
    longest = max(len(tokenizer.encode(prompt)) for prompt in request.prompts)
    if longest + request.max_new_tokens >= context:
        said = f"(longer than the context of {context:,} tokens: its beginning is forgotten on the way)"
        progress.print(said, style="dim")
    show(generate(model, tokenizer, request), request, as_json, logs)


def show(steps: "Iterator[list[Said]]", request: "Request", as_json: bool, logs: bool = False) -> None:
    """Print a single sample as it comes, several or JSON when they are whole."""
    from json import dumps

    from rich.text import Text

    from llamactl.cli.screen import output
    from llamactl.spelling import safe

    clean = safe if output.is_terminal else str
    streaming = len(request.prompts) * request.samples == 1 and not as_json
    if streaming:
        output.print(Text(clean(request.prompts[0]), style="bold"), end="")
    said: list[Said] = []
    for said in steps:
        if streaming:
            output.print(Text(clean(said[0].new)), end="")
    if streaming:
        output.print()
        return
    for each in said:
        if as_json:
            record = {"prompt": each.prompt, "sample": each.sample, "seed": request.seed, "text": each.text}
            record |= {"tokens": each.tokens, "log_probabilities": each.log_probabilities} if logs else {}
            output.print(dumps(record), markup=False)
        else:
            number = Text(f"[{each.sample}] ", style="dim") if request.samples > 1 else Text()
            output.print(Text.assemble(number, (clean(each.prompt), "bold"), clean(each.text)))

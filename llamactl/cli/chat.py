"""llamactl chat: talk to a model that was fine-tuned on conversations."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llamactl.cli import completion
from llamactl.cli.bounds import MOST_TOKENS
from llamactl.cli.options import (
    GENERATION,
    MODEL_HELP,
    SAID,
    DeviceName,
    MinP,
    RepetitionPenalty,
    SampleSeed,
    Temperature,
    TopK,
    TopP,
    WeightsFormat,
)
from llamactl.cli.preconditions import import_torch_and_verify, require_run

CONVERSATIONS_HELP = 'Answer each conversation of a JSONL file, {"messages": [...]}, and print it with the answer.'


def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default="the newest run", autocompletion=completion.checkpoints),
    ] = "",
    system: Annotated[
        str, typer.Option(help="What the system says first.", show_default="nothing", rich_help_panel=GENERATION)
    ] = "",
    conversations: Annotated[
        Path | None,
        typer.Option("--answer", metavar="FILE", help=CONVERSATIONS_HELP, show_default=False, rich_help_panel=GENERATION),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Maximum number of tokens of an answer.", rich_help_panel=GENERATION)
    ] = 400,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: SampleSeed = 0,
    weights: WeightsFormat = "f32",
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print each message as a line of JSON.", rich_help_panel=SAID)] = False,
) -> None:
    """Talk to a model that was fine-tuned on conversations.

    On a terminal it asks for one message after another; otherwise each line of the standard input is one.
    """
    require_run(model)
    verified = import_torch_and_verify(model)
    from llamactl.checkpoint import io as checkpoint_io
    from llamactl.checkpoint.select import describe_model
    from llamactl.cli.decoding import convert_for_decoding
    from llamactl.cli.ui.chat_loop import answer_file, answer_lines, run_chat_loop
    from llamactl.cli.ui.console import progress
    from llamactl.hardware.device import choose_device
    from llamactl.inference.chat import Chat
    from llamactl.inference.generate import Request
    from llamactl.inference.text_arguments import check_literal
    from llamactl.model.decode import Sampler

    request = Request((), max_new_tokens, seed=seed, pick=Sampler(temperature, top_k, top_p, min_p, repetition_penalty))
    path, loaded, tokenizer, state = checkpoint_io.open_model(model, choose_device(device), verified)
    conversation = Chat(loaded, tokenizer, request)
    conversation.model = convert_for_decoding(loaded, weights)
    conversation.set_system(check_literal(system, "The system message"))
    progress.print(describe_model(path, state), style="dim")
    if conversations:
        answer_file(conversation, conversations)
    elif sys.stdin and sys.stdin.isatty() and not json:
        run_chat_loop(conversation)
    else:
        answer_lines(conversation, json)

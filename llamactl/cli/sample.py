"""llamactl sample: generate text from prompts."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from llamactl.cli.ui.samples import show_samples, strip_prompt

if TYPE_CHECKING:
    from llamactl.checkpoint.format import State
    from llamactl.inference.generate import Request
    from llamactl.model.llama import Llama
    from llamactl.tokenizer.bpe import Tokenizer

WELL_ABOVE = 0.03  # nats per token above the best checkpoint: more than noise between validations on the same text
PROMPT_HELP = "Texts to continue, - for stdin. Without any: read a pipe or, on a terminal, ask for one after another."


def sample(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help=PROMPT_HELP, show_default=False)] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="A file with one prompt per line.", show_default=False, rich_help_panel=GENERATION
        ),
    ] = None,
    run: Annotated[
        str,
        typer.Option(
            help=MODEL_HELP,
            show_default="the newest",
            autocompletion=completion.checkpoints,
            rich_help_panel=GENERATION,
        ),
    ] = "",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Maximum number of tokens to add.", rich_help_panel=GENERATION)
    ] = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Stop before this text; repeatable.", show_default=False, rich_help_panel=GENERATION),
    ] = None,
    seed: SampleSeed = 0,
    n: Annotated[int, typer.Option("--n", min=1, max=10_000, help="Samples per prompt.", rich_help_panel=GENERATION)] = 1,
    raw_prompt: Annotated[
        bool, typer.Option("--raw-prompt", help="Keep spaces at the end of the prompt.", rich_help_panel=GENERATION)
    ] = False,
    weights: WeightsFormat = "f32",
    device: DeviceName = "auto",
    log_probabilities: Annotated[
        bool, typer.Option("--log-probabilities", help="With --json: print those of each token.", rich_help_panel=SAID)
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each sample as a line of JSON.", rich_help_panel=SAID)] = False,
) -> None:
    """Generate text from a prompt."""
    require_run(run)
    verified = import_torch_and_verify(run)
    from llamactl.checkpoint import io as checkpoint_io
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.cli.decoding import convert_for_decoding
    from llamactl.cli.ui.console import progress, show_next
    from llamactl.cli.ui.prompt_loop import run_prompt_loop
    from llamactl.errors import UsageError
    from llamactl.hardware.device import choose_device
    from llamactl.inference.generate import Request
    from llamactl.inference.text_arguments import check_literal
    from llamactl.model.decode import Sampler

    if log_probabilities and not json:
        raise UsageError("--log-probabilities needs --json.", "", "Add --json, which prints them with the tokens.")
    sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty)
    texts = read_prompts(prompts or [], prompts_file)
    # Without a prompt, only a person at a terminal can be asked for one; stdin is None where it was closed.
    if not texts and (json or not sys.stdin or not sys.stdin.isatty()):
        raise UsageError("There is no prompt.", "", 'Example: llamactl sample "California is "')
    stripped = texts if raw_prompt else [strip_prompt(text) for text in texts]
    stops = tuple(check_literal(text, "A stop") for text in stop or ())
    request = Request(tuple(stripped), max_new_tokens, n, seed, stops, sampler)
    path, model, tokenizer, state = checkpoint_io.open_model(run, choose_device(device), verified)
    model = convert_for_decoding(model, weights)
    progress.print(f"{checkpoint_select.describe_model(path, state)}{describe_loss(path, state)}", style="dim")
    if better := describe_better(path, state):
        progress.print(better, style="yellow")
    if not texts:
        run_prompt_loop(model, tokenizer, request, raw_prompt)
        return
    generate_and_print(model, tokenizer, request, json, log_probabilities)
    if longer := longer_run(path, state):
        show_next(longer, why="A longer run")


def describe_loss(path: "Path", state: "State") -> str:
    """Describe the validation loss of a checkpoint: on the whole split where that was measured; empty if it is unknown."""
    from llamactl.runs.summary import read_evaluation
    from llamactl.storage.records import look_up
    from llamactl.units import show_loss

    if evaluation := read_evaluation(path, state.step):
        return f", validation loss {show_loss(evaluation['loss'], evaluation.get('loss_error'))}"
    if state.validation_loss is None:
        return ""
    measured = look_up(state.config, "train", "eval_tokens")
    part = f" on {measured:,} held-out tokens" if isinstance(measured, int) else ""
    return f", validation loss {state.validation_loss:.3f}{part}"


def describe_better(path: "Path", state: "State") -> str:
    """Name the run's best checkpoint where its validation loss is well below this one's; empty where it is not."""
    from llamactl.checkpoint.format import read_state
    from llamactl.checkpoint.select import find_best_step
    from llamactl.runs.run_dir import run_of
    from llamactl.training.init_from import permanent_name

    run = run_of(path)
    best = find_best_step(run) if run else None
    # A later one that is not taken is damaged, or was not asked for.
    if run is None or best is None or best > state.step or state.validation_loss is None:
        return ""
    lowest = read_state(run.checkpoint(best)).validation_loss
    if lowest is None or state.validation_loss - lowest < WELL_ABOVE:
        return ""
    better = shlex.quote(permanent_name(run.checkpoint(best), best))
    return f"It overfits: step {best:,} had {lowest:.3f} on the same held-out text. Better: --run {better}"


def longer_run(path: "Path", state: "State") -> str:
    """Return the command for ten times the tokens, or as many as the data is worth; empty when it had them or ended early."""
    from llamactl.config.describe import train_command
    from llamactl.config.parameters import num_params
    from llamactl.config.schema import build_config, preset_settings
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.distributed.context import init_device
    from llamactl.errors import UserError
    from llamactl.planning.defaults import default_budget, worthwhile_epochs
    from llamactl.planning.resolve import resolve_config
    from llamactl.runs.metrics_log import last_rows
    from llamactl.runs.run_dir import run_of
    from llamactl.training.events import EndedEarly

    run = run_of(path)
    if not state.config:
        return ""
    try:
        if run and last_rows(run.metrics_path, (EndedEarly.kind,), run.path):
            return ""
        config = build_config([state.config])
        dataset = DatasetDir.from_name(config.data.name).open()
        same = {"tokens": config.train.tokens, "device": config.train.device, "init_from": config.train.init_from}
        usual = resolve_config(
            build_config([preset_settings(config.preset), {"train": same}]), dataset, init_device(config.train)
        )
    except UserError:  # the dataset is gone, or the checkpoint is of another version
        return ""
    tokens = min(10 * state.tokens, default_budget(num_params(config.model), dataset.info, worthwhile_epochs(config.train)))
    return train_command(config, tokens, usual) if tokens > 1.5 * state.tokens else ""


def read_prompts(typed: list[str], file: "Path | None") -> list[str]:
    """Read all prompts: arguments, lines of a file or, without any, a pipe; raises DataError or UsageError."""
    from llamactl.cli.ui.console import progress
    from llamactl.errors import DataError
    from llamactl.inference.text_arguments import STDIN, check_literal, read_lines, read_piped, read_stdin

    prompts = [_strip_line_end(read_stdin()) if text == STDIN else check_literal(text, "A prompt") for text in typed]
    for text in typed:
        # Path.is_file raises OSError where a text is too long for a file name.
        if text != STDIN and os.path.isfile(text):  # noqa: PTH113
            note = f"({text} is a file, and was used as text; for the prompts in it: --prompts {shlex.quote(text)})"
            progress.print(note, style="dim")
    if file:
        lines = [line for line in read_lines(file) if line.strip()]
        if not lines:
            raise DataError(f"{file} has no prompts.", "Each of its lines is a prompt.")
        prompts += lines
    if not prompts and (piped := read_piped()) is not None:
        prompts.append(_strip_line_end(piped))
    return prompts


def _strip_line_end(text: str) -> str:
    """Remove the final line end, which `echo` and editors add and which would be a token of the prompt."""
    return text.removesuffix("\n").removesuffix("\r")


def generate_and_print(model: "Llama", tokenizer: "Tokenizer", request: "Request", as_json: bool, logs: bool) -> None:
    """Generate samples and print them; say so before where a prompt and its continuation exceed the context."""
    from llamactl.cli.ui.console import progress
    from llamactl.inference.generate import generate_samples

    context = model.config.context
    longest = max(len(tokenizer.encode(prompt)) for prompt in request.prompts)
    # Not >: the end-of-text token in front of each prompt takes a position too.
    if longest + request.max_new_tokens >= context:
        note = f"(longer than the context of {context:,} tokens: the model will not see its beginning any more)"
        progress.print(note, style="dim")
    show_samples(generate_samples(model, tokenizer, request), request, as_json, logs)

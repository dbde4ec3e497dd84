"""llamactl sample without a prompt: read a line, continue it, and ask for the next one."""

import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from llamactl.cli.bounds import BOUNDS
from llamactl.cli.ui.console import progress
from llamactl.cli.ui.samples import show_samples, strip_prompt
from llamactl.errors import UsageError, suggest_nearest
from llamactl.inference.generate import Request, generate_samples
from llamactl.model.decode import Sampler
from llamactl.model.llama import Llama
from llamactl.storage.home import home_folder
from llamactl.tokenizer.bpe import Tokenizer

HISTORY = ".sample_history"
SAMPLER_FIELDS = {field.name.replace("_", "-"): field.name for field in fields(Sampler)}
SETTINGS = (*SAMPLER_FIELDS, *BOUNDS)


def run_prompt_loop(model: Llama, tokenizer: Tokenizer, request: Request, raw_prompt: bool = False) -> None:
    """Read prompts and print their continuations until Ctrl-D; a line that begins with / changes a setting."""
    progress.print("Type the beginning of a text. /help lists the settings, Ctrl-D quits.", style="dim")
    for line in read_typed_lines(HISTORY):
        if line.startswith("/"):
            request = change_setting(line, request)
        else:
            _continue_prompt(model, tokenizer, replace(request, prompts=(line if raw_prompt else strip_prompt(line),)))
            # So that the same prompt, typed again, has another continuation.
            request = replace(request, seed=request.seed + 1)


def read_typed_lines(history: str) -> Iterator[str]:
    """Yield the lines that a person types, but for blank ones; `history` names the file that keeps them, in the home folder."""
    load_history(home_folder() / history)
    while True:
        try:
            line = input("» ")
            line.encode()  # bytes of another encoding are surrogates where the locale has no letters for them
        except EOFError:
            progress.print()
            return
        # As in a shell, Ctrl-C drops the line and Ctrl-D leaves.
        except KeyboardInterrupt:
            progress.print()
            continue
        except UnicodeError:
            progress.print("This line is not UTF-8 text.", style="yellow")
            continue
        if line.strip():
            yield line


def apply_slash_command(line: str, request: Request) -> Request:
    """Apply a line such as `/temperature 0.7` to a request; raises UsageError for an unknown name or a bad value."""
    name, _, value = line.removeprefix("/").strip().partition(" ")
    if name not in SETTINGS:
        raise UsageError(f"There is no setting {name!r}.", suggest_nearest(name, SETTINGS))
    try:
        number: Any = float(value) if name in SAMPLER_FIELDS and name != "top-k" else int(value)
    except ValueError as error:
        raise UsageError(
            f"{name} can't be {value[:40]!r}.", "It is a number.", f"Example: /{name} {_current_value(name, request)}"
        ) from error
    if name in SAMPLER_FIELDS:
        return replace(request, pick=replace(request.pick, **{SAMPLER_FIELDS[name]: number}))
    least, most = BOUNDS[name]
    if not least <= number <= most:
        raise UsageError(f"{name} can't be {value[:40]}.", f"It takes {least} to {most}.")
    return replace(request, **{name.replace("-", "_"): number})


def change_setting(line: str, request: Request) -> Request:
    """Change a setting and print it, or print why it can't be changed; /help prints all."""
    if line.strip() == "/help":
        progress.print("\n".join(f"/{name} {_current_value(name, request)}" for name in SETTINGS), style="dim")
        return request
    try:
        request = apply_slash_command(line, request)
    except UsageError as error:
        progress.print(f"{error.what} {error.why} {error.fix}".strip(), style="yellow")
        return request
    name = line.removeprefix("/").split()[0]
    progress.print(f"{name} is {_current_value(name, request)}", style="dim")
    return request


def _current_value(name: str, request: Request) -> float:
    """Return the value of a setting, of the sampler or else of the request."""
    value: float = (
        getattr(request.pick, SAMPLER_FIELDS[name]) if name in SAMPLER_FIELDS else getattr(request, name.replace("-", "_"))
    )
    return value


def _continue_prompt(model: Llama, tokenizer: Tokenizer, request: Request) -> None:
    """Print the continuation of a prompt, until Ctrl-C, and its speed."""
    started, steps, count = time.monotonic(), generate_samples(model, tokenizer, request), 0
    try:
        # The first step is taken apart from the others to time it: it encodes the prompt.
        head = []
        for step in steps:
            head.append(step)
            break
        first = time.monotonic() - started
        show_samples((step for part in (head, steps) for step in part), request, as_json=False)
        # The completion is updated in place, so this is the number of tokens at the end.
        count = len(head[0][0].tokens) if head else 0
    except KeyboardInterrupt:
        progress.print()
        return
    seconds = max(1e-9, time.monotonic() - started)
    progress.print(f"{count:,} tokens, {count / seconds:,.1f} tokens/s, first token after {first:.2f} s", style="dim")


def load_history(path: Path) -> None:
    """Load the history of lines for the arrow keys, and write it back at exit; an OSError is ignored."""
    import atexit
    import readline
    from contextlib import suppress

    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)

    def write_history() -> None:
        with suppress(OSError):
            readline.write_history_file(path)

    atexit.register(write_history)

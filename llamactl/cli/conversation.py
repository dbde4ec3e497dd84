"""llamactl sample without a prompt: a line is typed, the model goes on from it, and the next one is asked for."""

import math
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from llamactl.artifacts import home
from llamactl.cli.sample import show, trimmed
from llamactl.cli.screen import progress
from llamactl.errors import BadUsage, nearest
from llamactl.inference.generate import Request, generate
from llamactl.model.decode import Picker
from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer

HISTORY = ".sample_history"
PICKS = {field.name.replace("_", "-"): field.name for field in fields(Picker)}
KNOBS = (*PICKS, "max-new-tokens", "seed")
RANGES = {"top-p": (0, 1), "min-p": (0, 1), "repetition-penalty": (1, math.inf), "max-new-tokens": (1, math.inf)}


def converse(model: Llama, tokenizer: Tokenizer, request: Request) -> None:
    """Until Ctrl-D; a line that begins with / changes a setting."""
    _remember(home() / HISTORY)
    progress.print("Type the beginning of a text. /help says what can be changed, Ctrl-D leaves.", style="dim")
    while True:
        try:
            line = input("» ")
        except EOFError:
            progress.print()
            return
        except KeyboardInterrupt:
            progress.print()
            continue
        if line.startswith("/"):
            request = _told(line, request)
        elif line.strip():
            _answer(model, tokenizer, replace(request, prompts=(trimmed(line),)))
            request = replace(request, seed=request.seed + 1)  # the same prompt goes on in another way


def changed(line: str, request: Request) -> Request:
    """The request after `/temperature 0.7`; raises BadUsage with what can be said."""
    name, _, value = line.removeprefix("/").strip().partition(" ")
    if name not in KNOBS:
        raise BadUsage(f"There is no setting {name!r}.", nearest(name, KNOBS))
    try:
        number: Any = float(value) if name in PICKS and name != "top-k" else int(value)
    except ValueError as error:
        raise BadUsage(f"{name} can't be {value!r}.", "It is a number.", f"Example: /{name} {_now(name, request)}") from error
    least, most = RANGES.get(name, (0, math.inf))
    if not least <= number <= most:
        raise BadUsage(f"{name} can't be {value}.", "It is out of its range.")
    if name not in PICKS:
        return replace(request, **{name.replace("-", "_"): number})
    return replace(request, pick=replace(request.pick, **{PICKS[name]: number}))


def _told(line: str, request: Request) -> Request:
    """Change a setting and say so, or say what is wrong."""
    if line.strip() == "/help":
        progress.print("\n".join(f"/{name} {_now(name, request)}" for name in KNOBS), markup=False, style="dim")
        return request
    try:
        request = changed(line, request)
    except BadUsage as error:
        progress.print(f"{error.what} {error.why} {error.fix}".strip(), markup=False, style="yellow")
        return request
    name = line.removeprefix("/").split()[0]
    progress.print(f"{name} is {_now(name, request)}", markup=False, style="dim")
    return request


def _now(name: str, request: Request) -> float:
    value: float = getattr(request.pick, PICKS[name]) if name in PICKS else getattr(request, name.replace("-", "_"))
    return value


def _answer(model: Llama, tokenizer: Tokenizer, request: Request) -> None:
    """Go on from a line, until Ctrl-C, and say how fast."""
    started, steps, said = time.monotonic(), generate(model, tokenizer, request), 0
    try:
        seen = []
        for each in steps:
            seen.append(each)
            break
        first = time.monotonic() - started
        show((step for part in (seen, steps) for step in part), request, as_json=False)
        said = len(seen[0][0].tokens) if seen else 0
    except KeyboardInterrupt:
        progress.print()
        return
    took = max(1e-9, time.monotonic() - started)
    progress.print(f"{said:,} tokens, {said / took:,.1f} tokens/s, the first after {first:.2f} s", style="dim")


def _remember(path: Path) -> None:
    """Lines can be called back with the arrow keys, also those of earlier days."""
    import atexit
    import readline
    from contextlib import suppress

    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)

    def keep() -> None:
        with suppress(OSError):
            readline.write_history_file(path)

    atexit.register(keep)

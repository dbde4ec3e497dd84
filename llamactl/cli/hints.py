"""Commands to run next, as they are typed: each word quoted, and runs by their names."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamactl.runs.run_dir import RunDir


def command_line(command: str, texts: Sequence[str], options: Sequence[str] = ()) -> str:
    """Return a command with texts and options; where a text begins with a dash, all are set apart from the options."""
    apart = any(text.startswith("-") for text in texts)
    return shlex.join([command, *options, "--", *texts] if apart else [command, *texts, *options])


def name_unless_newest(run: "RunDir") -> list[str]:
    """Return the name of a run as the words of a command: none for the newest one, which commands take by themselves."""
    from llamactl.runs.run_dir import RunDir

    return [] if run.path == RunDir.from_name("").path else [run.path.name]


def sample_next(run: "RunDir") -> str:
    """Return the command that continues the first prompt of a run."""
    prompts = run.config().train.prompts
    options = [word for name in name_unless_newest(run) for word in ("--run", name)]
    return f"llamactl {command_line('sample', [prompts[0] if prompts else 'The'], options)}"

"""What is written is true: links lead somewhere, commands parse, those of the pipeline run, and the help is the help.

`python tests/test_docs.py` writes docs/commands.md anew.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from llamactl.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ROOT / "docs" / "commands.md"
WIDTH = 100  # columns that every help fits in


def generated() -> str:
    """The reference of all commands, as Typer writes it."""
    words = [sys.executable, "-m", "typer", "llamactl.cli", "utils", "docs", "--name", "llamactl"]
    surroundings = {**os.environ, "COLUMNS": "1000", "NO_COLOR": "1"}
    written = subprocess.run(words, check=True, capture_output=True, text=True, env=surroundings, cwd=ROOT).stdout
    return written.replace("# `llamactl`", "# Every command\n\nMade from the help by `python tests/test_docs.py`.", 1)


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command of click's, or of what Typer has in its place, and all below it, with what one types to get there."""
    yield name, command
    for part, below in getattr(command, "commands", {}).items():
        yield from walk(below, f"{name} {part}")


ALL = dict(walk(typer.main.get_command(app), "llamactl"))


def lines() -> Iterator[tuple[Path, str]]:
    """Every command of llamactl's that stands in a block of some page, or as code in its text."""
    for page in PAGES:
        text = page.read_text("utf-8")
        blocks = re.findall(r"```(?:console|bash|sh)?\n(.*?)```", text, re.S)
        for line in "\n".join(blocks).splitlines():
            if found := re.match(r"(?:\$ )?(llamactl .*?)(?:\s+#.*)?$", line):
                yield page, found.group(1)
        for code in re.findall(r"`(llamactl [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
            yield page, code


def runnable(page: Path, line: str) -> bool:
    """Not what Typer writes of a command's form."""
    return page != COMMANDS or ("[OPTIONS]" not in line)


TYPED = sorted({(page.name, line) for page, line in lines() if runnable(page, line)})


def test_there_are_commands_in_the_docs() -> None:
    assert len(TYPED) >= 60
    named = {line.split()[1] for _, line in TYPED}
    assert {name.split()[1] for name in ALL if " " in name} <= named


@pytest.mark.parametrize(("page", "line"), TYPED, ids=[f"{page}-{line[:60]}" for page, line in TYPED])
def test_every_command_in_the_docs_is_one(page: str, line: str) -> None:
    """It parses as its command would parse it, up to the first thing that is done."""
    words = shlex.split(line)[1:]
    command = ALL["llamactl"]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{page}: {line}"
        command = command.commands[words.pop(0)]
    if words and not {"--help", "--version", "..."} & set(words):
        command.make_context("llamactl", words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), target


def test_the_reference_is_what_the_help_says() -> None:
    assert COMMANDS.read_text("utf-8") == generated(), "run: python tests/test_docs.py"


@pytest.mark.parametrize("name", list(ALL))
def test_every_help_fits_says_what_each_option_is_and_has_an_example(name: str) -> None:
    command = ALL[name]
    surroundings = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    words = [sys.executable, "-m", *name.split(), "--help"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True, env=surroundings).stdout
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert command.help, name
    if hasattr(command, "commands"):
        return
    assert "Example: llamactl" in shown
    options = [option for option in command.params if option.param_type_name == "option" and option.name != "help"]
    for option in options:
        assert option.help, f"{name} {option.name}"
    panels = {getattr(option, "rich_help_panel", None) for option in options}
    assert len(options) <= 8 or len(panels) > 1, f"{len(options)} options under one heading"


if __name__ == "__main__":
    COMMANDS.write_text(generated(), "utf-8")

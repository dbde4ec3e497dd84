"""llamactl chat: read messages and print the answers as they come."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamactl.cli.ui.console import output, progress, show_json
from llamactl.cli.ui.prompt_loop import change_setting, read_typed_lines
from llamactl.errors import DataError, UsageError, UserError
from llamactl.inference.chat import Chat, read_messages
from llamactl.inference.text_arguments import read_lines

HISTORY = ".chat_history"
HELP = """\
/reset           start a new conversation
/system TEXT     start a new one under a system message; without TEXT under none
/retry           answer the last message again"""


def run_chat_loop(chat: Chat) -> None:
    """Read messages and print the answers until Ctrl-D; a line that begins with / is a command."""
    progress.print("Say something. /help lists the commands, Ctrl-C ends an answer, Ctrl-D quits.", style="dim")
    for line in read_typed_lines(HISTORY):
        obey(chat, line, lambda said: _answer(chat, said))


def answer_lines(chat: Chat, as_json: bool) -> None:
    """Answer each line of the standard input, as turns of one conversation; commands work there as well."""
    for number, line in enumerate(sys.stdin.buffer if sys.stdin else (), 1):
        try:
            said = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"Line {number:,} of the standard input is not UTF-8.", str(error)) from error
        if said.strip():
            obey(chat, said, lambda said: _answer(chat, said, as_json))


def answer_file(chat: Chat, path: Path) -> None:
    """Answer each conversation of a JSONL file; raises DataError that names the first line that has none."""
    system = list(chat.messages)
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
            messages = read_messages(tree.get("messages") if isinstance(tree, dict) else None)
            chat.messages[:] = [*(system if messages[0]["role"] != "system" else ()), *messages[:-1]]
            for _ in chat.answer(messages[-1]["content"]):
                pass
        except (ValueError, RecursionError, UserError) as error:
            why = error.what if isinstance(error, UserError) else str(error)
            raise DataError(f"Line {number:,} of {path} can't be answered.", why) from error
        show_json({**tree, "messages": chat.messages})


def obey(chat: Chat, line: str, answer: Callable[[str], None]) -> None:
    """Carry out a line: a command, or else something to answer."""
    command, _, value = line.strip().partition(" ")
    if command == "/reset":
        chat.reset()
        progress.print("(a new conversation)", style="dim")
    elif command == "/system":
        chat.set_system(value.strip())
        progress.print("(a new conversation)", style="dim")
    elif command == "/retry":
        if len(chat.messages) < 2 or chat.messages[-1]["role"] != "assistant":
            progress.print("Nothing was answered yet.", style="yellow")
            return
        before = list(chat.messages)
        del chat.messages[-2:]
        answer(before[-2]["content"])
        if len(chat.messages) < len(before):  # it could not be answered again
            chat.messages[:] = before
    elif line.startswith("/"):
        if command == "/help":
            progress.print(HELP, style="dim")
        chat.request = change_setting(line, chat.request)
    else:
        answer(line)


def _answer(chat: Chat, said: str, as_json: bool = False) -> None:
    """Print the answer to a message, until Ctrl-C; a message that can't be answered is no more than said."""
    try:
        for piece in chat.answer(said):
            if not as_json:
                output.print_data(piece, end="")
    except KeyboardInterrupt:
        progress.print(" …", style="dim")
    except UsageError as error:
        progress.print(f"{error.what} {error.why} {error.fix}".strip(), style="yellow")
        return
    if as_json:
        for message in chat.messages[-2:]:
            show_json(message)
    else:
        output.print()
    if chat.left_out:
        progress.print(f"(the first {chat.left_out:,} messages no longer fit into the context)", style="dim")
    # So that the same question, asked again, has another answer.
    chat.request = replace(chat.request, seed=chat.request.seed + 1)

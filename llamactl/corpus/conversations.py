"""Conversations in the forms in which people store them, as lists of messages, or the reason why one is left out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from llamactl.corpus.columns import CONVERSATIONS, ROLES, SAYINGS
from llamactl.tokenizer.chat import Message

# What datasets call the three roles.
NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
# Columns of a question and its answer; `instruction` may have an `input` that belongs to it.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("input", "output"),
)
SYSTEM = ("system", "system_prompt")

COLUMNS = dict.fromkeys([*CONVERSATIONS, *SYSTEM, *(name for pair in PAIRS for name in pair)])

# Why a conversation is left out.
NO_CONVERSATION = "no conversation"
UNKNOWN_ROLE = "unknown role"
NOT_TEXT = "not text"
EMPTY_TURN = "empty turn"
NO_REPLY = "no reply"


class Skipped(NamedTuple):
    """The reason why a row is left out, and its size in bytes where that is known."""

    reason: str
    size: int = 0


def read_conversation(row: Any) -> list[Message] | Skipped:
    """Read the messages of a row, up to the last reply; roles are `system`, `user` and `assistant`.

    Turns keep their order, whatever it is. An empty message of the system is dropped, any other empty turn leaves the
    conversation out.
    """
    turns = _find_turns(row)
    if turns is None:
        return Skipped(NO_CONVERSATION)
    messages: list[Message] = []
    for role, content in turns:
        name = _role_of(role)
        text = _read_text(content)
        if name is None:
            return Skipped(UNKNOWN_ROLE)
        if text is None or not _is_unicode(text):
            return Skipped(NOT_TEXT)
        if text and not text.isspace():
            messages.append({"role": name, "content": text})
        elif name != "system":
            return Skipped(EMPTY_TURN)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages or Skipped(NO_REPLY)


def holds_conversation(row: Any) -> bool:
    """Check whether a row has the form of a conversation, whether or not it can be used."""
    return _find_turns(row) is not None


def _role_of(role: Any) -> str | None:
    return NAMES.get(role.strip().lower()) if isinstance(role, str) else None


def _find_turns(row: Any) -> list[tuple[Any, Any]] | None:
    """Find the turns of a row as pairs of role and content, without checking either; None where there are none."""
    if isinstance(row, list):
        return _read_turns(row)
    if not isinstance(row, Mapping):
        return None
    system = [("system", row[key]) for key in SYSTEM if isinstance(row.get(key), str)][:1]
    for key in CONVERSATIONS:
        if isinstance(row.get(key), list):
            turns = _read_turns(row[key])
            return turns and (turns if _role_of(turns[0][0]) == "system" else system + turns)
    for question, answer in PAIRS:
        if question in row and answer in row:
            return _read_pair(row, question, answer, system)
    return None


def _read_turns(turns: list[Any]) -> list[tuple[Any, Any]] | None:
    """Read messages with `role` and `content`, or `from` and `value`; None where one is no message."""
    found = []
    for turn in turns:
        role = next((key for key in ROLES if key in turn), "") if isinstance(turn, Mapping) else ""
        content = next((key for key in SAYINGS if key in turn), "") if role else ""
        if not content:
            return None
        found.append((turn[role], turn[content]))
    return found


def _read_pair(row: Mapping[str, Any], question: str, answer: str, system: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Read a question and its answer; either may be a list of messages itself, as preference datasets have them."""
    asked, answered = (_read_turns(row[key]) if isinstance(row[key], list) else None for key in (question, answer))
    said = row[question]
    if question == "instruction" and isinstance(said, str) and isinstance(row.get("input"), str) and row["input"].strip():
        said = f"{said}\n\n{row['input']}"
    return [*system, *(asked or [("user", said)]), *(answered or [("assistant", row[answer])])]


def _read_text(content: Any) -> str | None:
    """Return a content as text: a string, nothing, or a list of parts that are all text; None for any other."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def _is_unicode(text: str) -> bool:
    """Check that a text has no half of a surrogate pair, which JSON can spell and a damaged file becomes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Choose the column of a table, or the key of an object, that holds the text, and convert its values to text."""

from collections.abc import Mapping
from typing import Any

from llamactl.corpus.unreadable import Unreadable
from llamactl.errors import DataError

# The keys that chat datasets use for a conversation, a speaker and a message (role and content, or from and value).
CONVERSATIONS = ("messages", "conversations", "conversation")
# Only a suggestion for the error message: a column that is not "text" is never chosen by its name alone.
USUAL = ("content", "body", "document", "article", "story", "sentence", "line", "code", "markdown", "raw_content")
ROLES, SAYINGS = ("role", "from", "speaker"), ("content", "value", "text")


def choose_column(kinds: Mapping[str, str], place: str) -> tuple[str, str]:
    """Choose the column of the text when none was named, and say why (empty for "text").

    `kinds` maps each column to "text", "texts", "messages", or another type. Raises DataError when none is obvious.
    """
    if "text" in kinds:
        return "text", ""
    for name in CONVERSATIONS:
        if kinds.get(name) == "messages":
            return name, f"{name!r} holds conversations, which are written as lines of role: content"
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if len(texts) == 1:
        return texts[0], f"{texts[0]!r} is the only column of text"
    likely = next((name for name in USUAL if name in texts), texts[0] if texts else "COLUMN")
    raise DataError(
        f"{place} has no column 'text'.",
        f"It has: {list_columns(kinds)}.",
        f"Name the column of the text: --text-column {likely}",
    )


def is_corpus(kinds: Mapping[str, str]) -> bool:
    """Check whether columns say by their names that they hold text: settings of programs, in JSON, have some texts too."""
    return "text" in kinds or any(kinds.get(name) == "messages" for name in CONVERSATIONS)


def list_columns(names: Mapping[str, str]) -> str:
    """Format the names of columns for a message: the first twenty, and how many more there are."""
    shown = ", ".join(list(names)[:20])
    return f"{shown}, and {len(names) - 20:,} more" if len(names) > 20 else shown or "none"


def missing_column(column: str, kinds: Mapping[str, str], place: str) -> DataError:
    """Build the error for a column that does not exist."""
    what = f"{place} has no column {column!r}."
    return DataError(what, f"It has: {list_columns(kinds)}.", "Name the column of the text: --text-column COLUMN")


def describe_value(value: object) -> str:
    """Name the type of a value of a row, in the terms of `choose_column`."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        if value and all(isinstance(each, dict) and _role_key(each) for each in value):
            return "messages"
        return "texts" if all(isinstance(each, str) for each in value) else "list"
    return type(value).__name__


def read_value(value: Any, place: str, lost: int = 0) -> str | Unreadable | None:
    """Convert a value to text: a list of texts is joined by blank lines, a conversation becomes lines of role: content."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [_read_element(each) for each in value if each is not None]
        if all(text is not None for text in texts):
            # A null or empty element is dropped, as it would leave two blank lines in a row.
            return "\n\n".join(text for text in texts if text)
    return Unreadable(f"{place} is not text but {type(value).__name__}.", _advice(value), lost=lost)


def _read_element(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and (role := _role_key(value)):
        body = next(value[key] for key in SAYINGS if key in value)
        content = body if isinstance(body, str) else _join_parts(body)
        return None if content is None else f"{value[role]}: {content}"
    return None


def _role_key(message: Mapping[str, object]) -> str:
    """Find the key that names the speaker of a message; empty when there is none."""
    role = next((key for key in ROLES if isinstance(message.get(key), str)), "")
    return role if role and any(key in message for key in SAYINGS) else ""


def _join_parts(body: object) -> str | None:
    """Join the text parts of a message's content, such as {"type": "text", "text": ...}; None for any other type."""
    if body is None:
        return ""
    if not isinstance(body, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) else part for part in body]
    return "".join(part for part in parts if isinstance(part, str))


def _advice(value: object) -> str:
    return f"Its fields are: {', '.join(map(str, list(value)[:20]))}." if isinstance(value, dict) else ""

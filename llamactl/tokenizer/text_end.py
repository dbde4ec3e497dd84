"""The token that ends a text: a model's own files name it; of a tokenizer.json alone it is guessed by the names of tokens."""

import re
from pathlib import Path
from typing import Any

from llamactl.storage.records import parse_json, read_object, to_json

# How such tokens are called, the likeliest first: <|endoftext|>, <|end_of_text|>, <｜end▁of▁sentence｜>, </s>, <eos>, [SEP].
ENDS = (
    r"<\|endoftext\|>",
    r"<[|｜]end[_▁]?of[_▁]?(text|sentence)[|｜]>",
    r"</s>",
    r"[<\[(]\|?(eos|eot|eod)\|?[>\])]",
    r"<\|?im_end\|?>",
    r"\[SEP\]",
)
# The key of a token in tokenizer.json, which tokenizers leaves alone: a dataset has none of the other files that name it.
MARK = "ends_text"


def find_end(added: list[dict[str, Any]]) -> int | None:
    """Return the id of the control token that ends a text: the marked one, else the one with the likeliest name."""
    special = [(int(token["id"]), str(token["content"])) for token in added if token.get("special")]
    marked = [int(token["id"]) for token in added if token.get(MARK)]
    named = [number for pattern in ENDS for number, name in special if re.fullmatch(pattern, name, re.IGNORECASE)]
    return next(iter(marked + named), None)


def mark_end(description: str, end: str | int) -> str:
    """Return a tokenizer.json in which a token, given by name or id, ends a text; the same where that is clear by its name.

    Raises ValueError, KeyError or TypeError where it is malformed.
    """
    tree = parse_json(description)
    added = tree.get("added_tokens", [])
    # An id may be a default of the program that wrote it, and that of any token: only a control token is believed.
    token = next((each for each in added if end == each["content"] or (end == each["id"] and each.get("special"))), None)
    if token is None or find_end(added) == token["id"]:
        return description
    token |= {"special": True, MARK: True}
    return to_json(tree)


def read_end(folder: Path) -> str | int | None:
    """Return the name or the id of the token that ends a text, by the files of a model's folder; None where none says it.

    Raises DataError for a file that is not JSON.
    """
    settings = {
        name: _read_settings(folder / name) for name in ("tokenizer_config.json", "config.json", "generation_config.json")
    }
    token = settings["tokenizer_config.json"].get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    if isinstance(name, str) and name:
        return name
    for file in ("config.json", "generation_config.json"):
        ids = settings[file].get("eos_token_id")
        # Chat models have several: what ends a text, then what ends an answer.
        first = next(iter(ids), None) if isinstance(ids, list) else ids
        if isinstance(first, int) and not isinstance(first, bool):
            return first
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    # Resolved: in the hub's cache files are links.
    return read_object(path.resolve()) if path.exists() else {}

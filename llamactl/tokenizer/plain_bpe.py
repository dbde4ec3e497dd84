"""Byte-level BPE as GPT-2 has it, which tiktoken encodes: how to know it, and its vocabulary."""

from collections.abc import Sequence
from typing import Any

from llamactl.tokenizer.byte_level import BYTE_OF
from llamactl.tokenizer.text_end import MARK

END_OF_TEXT = "<|endoftext|>"

# Options of BPE with which other ids result than tiktoken's.
OTHER_IDS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


def is_plain(tree: dict[str, Any]) -> bool:
    """Check whether tiktoken, which merges by id, gives the ids of a tokenizer.json; raises what a malformed one causes."""
    model, splitter = tree["model"], tree["pre_tokenizer"]
    if model["type"] != "BPE" or tree["normalizer"] is not None or any(model.get(name) for name in OTHER_IDS):
        return False
    # ByteLevel with GPT-2's pattern and no prefix space.
    if not splitter or splitter["type"] != "ByteLevel" or splitter["add_prefix_space"] or not splitter.get("use_regex", True):
        return False
    vocabulary = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    # Dense ids that hold all 256 bytes, then the end-of-text token, then other control tokens.
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not set(BYTE_OF) <= vocabulary.keys() or "" in vocabulary:
        return False
    # The first one ends a text, whatever else is marked as that.
    if any(token.get(MARK) for token in tree["added_tokens"]):
        return False
    added = [(token["content"], token["id"], token["special"]) for token in tree["added_tokens"]]
    if (
        not added
        or added != [(name, i, True) for i, (name, *_) in enumerate(added, len(vocabulary))]
        or added[0][0] != END_OF_TEXT
    ):
        return False
    # The first 256 ids are bytes, so every further id is the result of one merge, in the order of ids.
    pairs = [pair_of(merge) for merge in model["merges"]]
    if any(len(pair) != 2 or not set(pair) <= vocabulary.keys() for pair in pairs):
        return False
    merged = [vocabulary.get("".join(pair), -1) for pair in pairs]
    return merged == sorted(set(merged)) and len(merged) == len(vocabulary) - 256


def plain_vocabulary(tree: dict[str, Any]) -> list[bytes]:
    """Return the bytes of each id of a plain byte-level BPE, but for the end-of-text token."""
    vocabulary = {token: i for token, i in tree["model"]["vocab"].items() if token != END_OF_TEXT}
    return [bytes(BYTE_OF[character] for character in token) for token in sorted(vocabulary, key=vocabulary.__getitem__)]


def pair_of(merge: str | Sequence[str]) -> Sequence[str]:
    """Return the two parts of a merge: "a b" in files of older versions of tokenizers, ["a", "b"] since."""
    return merge.split(" ") if isinstance(merge, str) else merge

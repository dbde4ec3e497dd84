"""The tokenizer of a GGUF file, as llama.cpp reads it: byte-level BPE with a pattern that it knows, or SentencePiece's BPE."""

import json
import re
from typing import Any

from llamactl.errors import DataError
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import find_turn_end
from llamactl.tokenizer.plain_bpe import END_OF_TEXT, pair_of

# llama.cpp rejects a vocabulary without merges, such as that of `bytes`. This merge is never applied: BPE starts from single
# characters, and neither part of it is one.
NO_MERGE = f"{END_OF_TEXT} {END_OF_TEXT}"
# What llama.cpp calls the patterns of public models (convert_hf_to_gguf.py), by a part that no other has.
DIGITS_BY_THREE, DIGIT_BY_DIGIT = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
PATTERNS = {DIGITS_BY_THREE: "llama-bpe", DIGIT_BY_DIGIT: "qwen2"}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def write_tokenizer(writer: Any, gguf: Any, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as metadata; raises DataError for one that llama.cpp has no name for."""
    tree = json.loads(tokenizer.description)
    names = _names(tree, tokenizer.vocab_size)
    writer.add_token_list([name or f"[PAD{number}]" for number, name in enumerate(names)])
    writer.add_token_types(_types(gguf, tree, names))
    if _is_sentencepiece(tree):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # The later a merge, the lower its score: SentencePiece merges the pair with the highest one.
        order = {"".join(pair_of(merge)): number for number, merge in enumerate(tree["model"]["merges"])}
        writer.add_token_scores([-float(order.get(name, 0)) for name in names])
        writer.add_add_space_prefix(True)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pattern_name(tree))
        merges = [" ".join(pair_of(merge)) for merge in tree["model"]["merges"]]
        writer.add_token_merges(merges or [NO_MERGE])
        writer.add_add_space_prefix(False)
    writer.add_bos_token_id((tokenizer.start or (tokenizer.end,))[0])
    writer.add_eos_token_id(tokenizer.end)
    writer.add_add_bos_token(bool(tokenizer.start))  # where documents begin with it
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    if (turn := find_turn_end(tokenizer)) is not None:
        writer.add_eot_token_id(turn)


def _names(tree: dict[str, Any], count: int) -> list[str]:
    """Return the text of each id, empty for one that stands for nothing."""
    names = [""] * count
    for token, number in tree["model"]["vocab"].items():
        names[number] = token
    for token in tree["added_tokens"]:
        names[token["id"]] = token["content"]
    return names


def _types(gguf: Any, tree: dict[str, Any], names: list[str]) -> list[Any]:
    added = {token["id"]: token["special"] for token in tree["added_tokens"]}
    kinds = gguf.TokenType
    return [
        (kinds.CONTROL if added[number] else kinds.USER_DEFINED)
        if number in added
        else (kinds.UNUSED if not name else kinds.BYTE if BYTE.fullmatch(name) else kinds.NORMAL)
        for number, name in enumerate(names)
    ]


def _is_sentencepiece(tree: dict[str, Any]) -> bool:
    return tree["model"]["type"] == "BPE" and bool(tree["model"].get("byte_fallback"))


def _pattern_name(tree: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pattern that splits text into words; raises DataError."""
    splitter = tree["pre_tokenizer"] or {}
    parts = splitter.get("pretokenizers", [splitter])
    kinds = [part.get("type") for part in parts]
    patterns = [part["pattern"].get("Regex", "") for part in parts if part.get("type") == "Split"]
    if tree["model"]["type"] == "BPE" and kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if tree["model"]["type"] == "BPE" and kinds == ["Split", "ByteLevel"]:
        for part, name in PATTERNS.items():
            if part in patterns[0]:
                return name
    why = "llama.cpp splits text by the patterns of known models, and has no name for this one."
    raise DataError("This tokenizer can't be stored in a GGUF file.", why, "Export for Hugging Face: llamactl export hf")

"""Tokenizers of other models: all that Hugging Face's `tokenizers` runs, with exactly its ids.

Byte-level BPE with any pattern and any special tokens (Llama 3, Qwen, SmolLM), SentencePiece's BPE and Unigram (Llama 2,
Mistral), WordPiece.
"""

import re
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from llamactl.tokenizer.byte_level import BYTE_OF, spell
from llamactl.tokenizer.text_end import find_end

SPACE = "\u2581"  # ▁, SentencePiece's
# Pre-tokenizers that split a text, and leave all of it.
SPLITTERS = {"ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts", "Sequence"}
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Parts(NamedTuple):
    """What a tokenizer consists of: the bytes of each id (none for control tokens), and the ids that end and begin a text.

    `lossless`: the bytes of a text's ids are exactly those of the text, without a space before it or changed characters.
    """

    spelled: list[bytes]
    end: int
    start: tuple[int, ...]
    lossless: bool = True


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library: text in, ids out, never a control token for what a text says."""

    def __init__(self, description: str, tree: dict[str, Any]) -> None:
        """Build it from a tokenizer.json; raises ValueError where it can't be used."""
        from tokenizers import Tokenizer

        if tree["model"].get("dropout"):
            raise ValueError("its BPE has dropout, with which the same text has other ids each time")
        try:
            self._tokenizer = Tokenizer.from_str(description)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"the library tokenizers can't read it ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._with_controls = deepcopy(self._tokenizer)
        self._tokenizer.encode_special_tokens = True
        self.parts = self._read_parts(tree)

    def encode(self, text: str) -> np.ndarray:
        """Encode a text as uint32 ids, without the tokens that begin or end one."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(self._without_controls(text, ids), dtype=np.uint32)

    def encode_with_controls(self, text: str) -> list[int]:
        """Encode a text in which the names of control tokens stand for those tokens."""
        ids: list[int] = self._with_controls.encode(text, add_special_tokens=False).ids
        return ids

    def find_id(self, token: str) -> int | None:
        """Return the id of a token; None for one that there is not."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encode texts in parallel."""
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._without_controls(text, each.ids) for text, each in zip(texts, found, strict=True)]

    def _without_controls(self, text: str, ids: list[int]) -> list[int]:
        """Return the ids of a text; where control tokens were taken for what it says, encode it cut within each of those."""
        # Unigram has its control tokens among the pieces of text. An id for unknown text may be a control token as well.
        named = [name for name in self._controls if name in text]
        if not named or self._control_ids.isdisjoint(ids):
            return ids
        pattern = "|".join(map(re.escape, sorted(named, key=len, reverse=True)))
        cut = [0, *(match.start() + 1 for match in re.finditer(pattern, text)), len(text)]
        pieces = [text[start:stop] for start, stop in pairwise(cut)]
        return [i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False).ids]

    def _read_parts(self, tree: dict[str, Any]) -> Parts:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        special = {token["id"]: token["content"] for token in tree.get("added_tokens", []) if token.get("special")}
        added = {token["id"] for token in tree.get("added_tokens", [])}
        self._controls, self._control_ids = set(special.values()), set(special)
        spelled = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, number in vocabulary.items():
            if number not in special:
                spelled[number] = token.encode() if number in added else _bytes_of(token, tree)
        if (end := find_end(tree.get("added_tokens", []))) is None:
            raise ValueError("it has no special token that ends a text, such as <|endoftext|> or </s>")
        return Parts(spelled, end, self._find_start(), _is_lossless(tree, set(vocabulary)))

    def _find_start(self) -> tuple[int, ...]:
        """Return the ids that the post-processor puts before a text."""
        bare, full = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        places = [place for place in range(len(full)) if full[place : place + len(bare)] == bare]
        return tuple(full[: places[0]]) if places else ()


def opening_rule(name: str, number: int) -> dict[str, Any]:
    """Return the post-processor of a tokenizer.json by which each text begins with a control token."""
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": text, "type_id": place}} for place, text in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }


def _bytes_of(token: str, tree: dict[str, Any]) -> bytes:
    """Return the bytes of text that a token stands for."""
    model, components = tree["model"], _components(tree.get("normalizer"), tree.get("pre_tokenizer"), tree.get("decoder"))
    if any(each.get("type") == "ByteLevel" for each in components):
        return spell(token)
    if model["type"] == "WordPiece":
        prefix = model.get("continuing_subword_prefix", "##")
        return token.removeprefix(prefix).encode() if token.startswith(prefix) else f" {token}".encode()
    if found := BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    if suffix := model.get("end_of_word_suffix"):
        token = token.removesuffix(suffix) + " " if token.endswith(suffix) else token
    return token.removeprefix(model.get("continuing_subword_prefix") or "").replace(SPACE, " ").encode()


def _components(*waiting: Any) -> list[dict[str, Any]]:
    """Collect normalizers, pre-tokenizers and decoders, also those in a sequence."""
    found = []
    for each in waiting:
        if isinstance(each, dict):
            inner = [part for value in each.values() if isinstance(value, list) for part in value]
            found += [each, *_components(*inner)]
    return found


def _is_lossless(tree: dict[str, Any], vocabulary: set[str]) -> bool:
    """Check whether a tokenizer is a byte-level BPE with a token for each byte, and no part that removes or adds text."""
    model, splitters = tree["model"], _components(tree.get("pre_tokenizer"))
    types = {str(each.get("type")) for each in splitters}
    return (
        not tree.get("normalizer")
        and model["type"] == "BPE"
        and not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        # A byte without a token is left out of the text, or becomes the token for unknown text.
        and vocabulary >= BYTE_OF.keys()
        and "ByteLevel" in types
        and types <= SPLITTERS
        and not any(each.get("add_prefix_space") or each.get("behavior") == "Removed" for each in splitters)
        # They take the spaces around them; a text never becomes a special token.
        and not any(
            token.get("lstrip") or token.get("rstrip") for token in tree.get("added_tokens", []) if not token["special"]
        )
    )

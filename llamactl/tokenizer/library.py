"""Tokenizers of other models: all that Hugging Face's `tokenizers` runs, with exactly its ids.

Byte-level BPE with any pattern and any special tokens (Llama 3, Qwen, SmolLM), SentencePiece's BPE and Unigram (Llama 2,
Mistral), WordPiece.
"""

import re
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from llamactl.tokenizer.byte_level import spell

# How tokens that end a document are called, the likeliest first: <|endoftext|>, <|end_of_text|>, </s>, <eos>, [SEP].
ENDS = (r"<\|endoftext\|>", r"<\|end_?of_?text\|>", r"</s>", r"[<\[(]\|?(eos|eot|eod)\|?[>\])]", r"<\|?im_end\|?>", r"\[SEP\]")
SPACE = "\u2581"  # ▁, SentencePiece's
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
        lossless = "ByteLevel" in _component_types(tree) and not tree.get("normalizer") and not _adds_space(tree)
        return Parts(spelled, _find_end(special), self._find_start(), lossless)

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
    model, mentioned = tree["model"], _component_types(tree)
    if "ByteLevel" in mentioned:
        return spell(token)
    if model["type"] == "WordPiece":
        prefix = model.get("continuing_subword_prefix", "##")
        return token.removeprefix(prefix).encode() if token.startswith(prefix) else f" {token}".encode()
    if found := BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    if suffix := model.get("end_of_word_suffix"):
        token = token.removesuffix(suffix) + " " if token.endswith(suffix) else token
    return token.removeprefix(model.get("continuing_subword_prefix") or "").replace(SPACE, " ").encode()


def _component_types(tree: dict[str, Any]) -> set[str]:
    """Collect the types of all normalizers, pre-tokenizers and decoders, also of those in a sequence."""
    found, waiting = set(), [tree.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            found.add(str(each.get("type")))
            waiting += [inner for value in each.values() if isinstance(value, list) for inner in value]
    return found


def _adds_space(tree: dict[str, Any]) -> bool:
    """Check whether a pre-tokenizer puts a space before a text."""
    splitter = tree.get("pre_tokenizer") or {}
    return any(part.get("add_prefix_space") for part in (splitter, *splitter.get("pretokenizers", [])))


def _find_end(special: dict[int, str]) -> int:
    """Return the id of the token that ends a document; raises ValueError without one."""
    for pattern in ENDS:
        for number, content in special.items():
            if re.fullmatch(pattern, content, re.IGNORECASE):
                return number
    raise ValueError("it has no special token that ends a text, such as <|endoftext|> or </s>")

"""Byte-level BPE tokenizers: stored as a Hugging Face tokenizer.json, encoding through tiktoken.

The last id of each vocabulary is the end-of-text token, which ends every document and opens every sample.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llamactl.errors import BadData, BadUsage
from llamactl.gpt2_vocabulary import find_vocabulary

END_OF_TEXT = "<|endoftext|>"

# GPT-2's rule for cutting text into words before merging, as `ByteLevel` of Hugging Face tokenizers has it built in.
# In tiktoken's spelling, whose possessive quantifiers can't backtrack (openai/tiktoken, openai_public.py).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def _printable_bytes() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each of the 256 bytes (openai/gpt-2, encoder.py)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + k): byte for k, byte in enumerate(others)}


BYTE_OF = _printable_bytes()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


class Tokenizer:
    """Text to token ids and back, exactly as its tokenizer.json says."""

    def __init__(self, description: str) -> None:
        """Read the text of a tokenizer.json; raises BadData when it is not byte-level BPE as tiktoken has it."""
        self.description = description
        try:
            self._bytes = _vocabulary(json.loads(description))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData("This tokenizer.json can't be used.", f"It is not plain byte-level BPE: {error}.") from error

    @property
    def vocab_size(self) -> int:
        """How many ids there are, the end-of-text token among them."""
        return len(self._bytes) + 1

    @property
    def end(self) -> int:
        """The id of the end-of-text token."""
        return len(self._bytes)

    @property
    def digest(self) -> str:
        """sha256 of the tokenizer.json."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text (uint32); text never becomes a control token. Raises UnicodeEncodeError on lone surrogates."""
        text.encode("utf-8")
        ids: np.ndarray = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without control tokens; half characters at the ends become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, which may end in the middle of a character; control tokens have none."""
        return b"".join(self._bytes[i] for i in ids if i < self.end)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for (int64, one per id; the end-of-text token has 0)."""
        return np.array([*map(len, self._bytes), 0])

    @cached_property
    def _encoding(self) -> Any:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(self._bytes)}
        return tiktoken.Encoding(
            "llamactl", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.end}
        )


def _vocabulary(tree: dict[str, Any]) -> list[bytes]:
    """The bytes of each id; raises ValueError when tiktoken, which merges by id, would give other ids than `tree` says."""
    if tree["model"]["type"] != "BPE" or tree["normalizer"] is not None:
        raise ValueError("its model must be BPE, without a normalizer")
    words = tree["pre_tokenizer"]
    if words["type"] != "ByteLevel" or words["add_prefix_space"] or not words.get("use_regex", True):
        raise ValueError("its pre-tokenizer must be ByteLevel with GPT-2's pattern and no prefix space")
    vocabulary = {token: i for token, i in tree["model"]["vocab"].items() if token != END_OF_TEXT}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))) or not set(BYTE_OF) <= set(tokens):
        raise ValueError("its ids must be dense and hold all 256 bytes")
    if [(t["content"], t["id"]) for t in tree["added_tokens"]] != [(END_OF_TEXT, len(tokens))]:
        raise ValueError(f"its only added token must be {END_OF_TEXT}, with the last id")
    merged = [vocabulary["".join(_pair(merge))] for merge in tree["model"]["merges"]]
    if merged != sorted(set(merged)) or len(merged) != len(tokens) - 256:
        raise ValueError("its merges must stand in the order of their ids")
    return [bytes(BYTE_OF[character] for character in token) for token in tokens]


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    """A merge is written "a b" or ["a", "b"], by the age of the file."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _describe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> str:
    """The tokenizer.json of a byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer.to_str()


def gpt2() -> Tokenizer:
    """The GPT-2 BPE of 50,257 ids, from OpenAI's vocab.bpe."""
    merges = [tuple(line.split(" ")) for line in find_vocabulary().read_text("utf-8").splitlines()[1:]]
    tokens = [*BYTE_OF, *(left + right for left, right in merges)]
    return Tokenizer(_describe({token: i for i, token in enumerate(tokens)}, [(left, right) for left, right in merges]))


def raw_bytes() -> Tokenizer:
    """Bytes are the ids; nothing to learn, four times the tokens."""
    return Tokenizer(_describe({CHARACTER_OF[byte]: byte for byte in range(256)}, []))


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn a BPE of `vocab_size` ids from texts; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=sorted(BYTE_OF), special_tokens=[], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    return Tokenizer(_describe(model["vocab"], [(left, right) for left, right in map(_pair, model["merges"])]))


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"gpt2": gpt2, "bytes": raw_bytes}


def bpe_size(name: str) -> int:
    """N of `bpe:N`, or 0 when the name is of another kind; raises BadUsage for an N that can't be."""
    kind, colon, size = name.partition(":")
    if kind != "bpe" or not colon:
        return 0
    if not size.isdecimal() or not 257 < int(size) <= 1_000_000:
        raise BadUsage(
            f"{name!r} is not a tokenizer.", "bpe:N takes a vocabulary size above 257.", "Example: --tokenizer bpe:8192"
        )
    return int(size)


def named(name: str) -> Tokenizer:
    """A tokenizer that needs no training: gpt2, bytes, or the path of a tokenizer.json."""
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise BadUsage(f"There is no tokenizer {name!r}.", "It is gpt2, bpe:N, bytes or the path of a tokenizer.json.")
    return Tokenizer(path.read_text("utf-8"))

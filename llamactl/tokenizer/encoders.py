"""Encode texts in batches: by the tokenizer's own engine, or by a faster one that is installed and gives the same ids."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llamactl import install_command
from llamactl.errors import DataError, UsageError, suggest_nearest
from llamactl.storage.records import parse_json
from llamactl.tokenizer.bpe import Tokenizer, read_tokenizer
from llamactl.tokenizer.library import LibraryTokenizer


class Encoded(NamedTuple):
    """The concatenated ids of several texts (uint32), and the number of ids of each (int64)."""

    ids: np.ndarray
    lengths: np.ndarray

    def with_separators(self, rows: np.ndarray, separator: Sequence[int]) -> np.ndarray:
        """Return the ids of the texts where `rows` is True, each followed by those of `separator`."""
        # Without a loop over texts: fill a mask that is False where separators go, then all ids in one assignment.
        ids, lengths = self.ids[np.repeat(rows, self.lengths)], self.lengths[rows]
        inside = np.ones(len(ids) + len(lengths) * len(separator), dtype=bool)
        ends = np.cumsum(lengths + len(separator))
        for back in range(1, len(separator) + 1):
            inside[ends - back] = False
        separated = np.empty(len(inside), dtype=self.ids.dtype)
        separated[inside] = ids
        separated[~inside] = np.tile(np.array(separator, dtype=self.ids.dtype), len(lengths))
        return separated


Encoder = Callable[[Sequence[str]], Encoded]


def tiktoken_encoder(tokenizer: Tokenizer) -> Encoder:
    """Return an encoder that uses the tokenizer itself, one text at a time: tiktoken, without lists of Python integers."""

    def encode(texts: Sequence[str]) -> Encoded:
        rows = [tokenizer.encode(text) for text in texts]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return Encoded(np.concatenate(rows) if rows else np.empty(0, dtype=np.uint32), lengths)

    return encode


def fastokens_encoder(tokenizer: Tokenizer) -> Encoder:
    """Return an encoder that uses fastokens (github.com/crusoecloud/fastokens), about ten times as fast as tiktoken."""
    import fastokens as package

    engine: Any = package.Tokenizer.from_json_str(tokenizer.description)

    def encode(texts: Sequence[str]) -> Encoded:
        # Special tokens in a text are encoded as any other text, as with tiktoken.
        ids, ends = engine.encode_batch_flat(list(texts), split_special_tokens=True)
        return Encoded(np.frombuffer(ids, dtype="<u4"), np.diff(np.frombuffer(ends, dtype="<u8")).astype(np.int64))

    return encode


def library_encoder(tokenizer: Tokenizer) -> Encoder:
    """Return an encoder that uses Hugging Face's tokenizers, several texts in parallel: the reference for other models'."""
    library = tokenizer.library or LibraryTokenizer(tokenizer.description, parse_json(tokenizer.description))

    def encode(texts: Sequence[str]) -> Encoded:
        rows = library.encode_batch(list(texts))
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return Encoded(np.fromiter(chain.from_iterable(rows), dtype=np.uint32, count=int(lengths.sum())), lengths)

    return encode


# The fastest first: `auto` takes the first one that is installed.
ENCODERS: dict[str, Callable[[Tokenizer], Encoder]] = {
    "fastokens": fastokens_encoder,
    "tiktoken": tiktoken_encoder,
    "tokenizers": library_encoder,
}


def reference_encoder(tokenizer: Tokenizer) -> str:
    """Return the name of the encoder whose ids are right by definition."""
    return "tokenizers" if tokenizer.library else "tiktoken"


def get_encoder(name: str) -> str:
    """Return the name of an encoder; `auto` is the fastest one installed. Raises UsageError for one that is not available."""
    installed = [encoder for encoder in ENCODERS if importlib.util.find_spec(encoder)]
    if name == "auto":
        return installed[0]
    if name not in ENCODERS:
        raise UsageError(f"There is no encoder {name!r}.", suggest_nearest(name, ["auto", *ENCODERS]))
    if name not in installed:
        raise UsageError(f"The encoder {name} is not installed.", "", install_command("fast"))
    return name


@lru_cache(maxsize=1)
def open_tokenizer(name: str, path: Path, digest: str) -> tuple[Tokenizer, Encoder]:
    """Read a tokenizer.json and build an encoder for it; raises DataError when its digest is another one.

    The digest keeps tokens of two tokenizers from being mixed in one dataset.
    """
    # Cached, as reading one takes longer than encoding a shard.
    tokenizer = read_tokenizer(path)
    if tokenizer.digest != digest:
        raise DataError(f"{path} was replaced by another tokenizer.", "", "Run the same command again.")
    return tokenizer, ENCODERS[name](tokenizer)


def encoders_agree(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
    """Check whether an encoder gives the same ids as the reference for some texts; False where it can't encode them."""
    if name == "tiktoken" and tokenizer.library:
        return False
    try:
        encoded = ENCODERS[name](tokenizer)(texts)
    except Exception:  # whatever another engine raises for a tokenizer that it does not know
        return False
    expected = ENCODERS[reference_encoder(tokenizer)](tokenizer)(texts)
    return all(np.array_equal(a, b) for a, b in zip(encoded, expected, strict=True))

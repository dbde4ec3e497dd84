"""Engines that turn texts into ids: tiktoken is the reference, faster ones give the same ids where they are installed."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llamactl.errors import BadUsage, nearest
from llamactl.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """The ids of several texts, one after another (uint32), and how many each has (int64)."""

    ids: np.ndarray
    lengths: np.ndarray

    def ended(self, rows: np.ndarray, end: int) -> np.ndarray:
        """The ids of the texts where `rows` is True, each followed by `end`."""
        ids, lengths = self.ids[np.repeat(rows, self.lengths)], self.lengths[rows]
        inside = np.ones(len(ids) + len(lengths), dtype=bool)
        inside[np.cumsum(lengths + 1) - 1] = False
        ended = np.full(len(inside), end, dtype=self.ids.dtype)
        ended[inside] = ids
        return ended


Encoder = Callable[[Sequence[str]], Encoded]


def tiktoken(tokenizer: Tokenizer) -> Encoder:
    """Text by text, without a list of Python integers in between."""

    def encode(texts: Sequence[str]) -> Encoded:
        rows = [tokenizer.encode(text) for text in texts]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return Encoded(np.concatenate(rows) if rows else np.empty(0, dtype=np.uint32), lengths)

    return encode


def fastokens(tokenizer: Tokenizer) -> Encoder:
    """Some ten times as fast (github.com/crusoecloud/fastokens), from the same tokenizer.json."""
    import fastokens as package

    engine: Any = package.Tokenizer.from_json_str(tokenizer.description)

    def encode(texts: Sequence[str]) -> Encoded:
        ids, ends = engine.encode_batch_flat(list(texts), split_special_tokens=True)
        return Encoded(np.frombuffer(ids, dtype="<u4"), np.diff(np.frombuffer(ends, dtype="<u8")).astype(np.int64))

    return encode


ENCODERS: dict[str, Callable[[Tokenizer], Encoder]] = {"fastokens": fastokens, "tiktoken": tiktoken}  # the fastest first


def choose(name: str) -> str:
    """The encoder of a name; `auto` is the fastest that is installed. Raises BadUsage."""
    installed = [each for each in ENCODERS if importlib.util.find_spec(each)]
    if name == "auto":
        return installed[0]
    if name not in ENCODERS:
        raise BadUsage(f"There is no encoder {name!r}.", nearest(name, ["auto", *ENCODERS]))
    if name not in installed:
        raise BadUsage(f"The encoder {name} is not installed.", "", "pip install 'llamactl[fast]'")
    return name


def opened(name: str, path: Path) -> tuple[Tokenizer, Encoder]:
    """The tokenizer of a tokenizer.json and an encoder for it; kept, as reading one takes longer than a shard."""
    return _opened(name, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(name: str, path: Path, _written: int) -> tuple[Tokenizer, Encoder]:
    tokenizer = Tokenizer(path.read_text("utf-8"))
    return tokenizer, ENCODERS[name](tokenizer)


def agrees(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
    """Whether an encoder gives the ids of the reference for some texts."""
    found, expected = ENCODERS[name](tokenizer)(texts), tiktoken(tokenizer)(texts)
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

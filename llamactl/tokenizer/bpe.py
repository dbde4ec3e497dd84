"""Tokenizers, stored as a Hugging Face tokenizer.json: those that llamactl learns, and those of other models.

A token ends every document, and one begins every sample; in llamactl's own vocabularies both are the last id.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from llamactl.errors import DataError, UsageError
from llamactl.storage.records import parse_json, read_text
from llamactl.tokenizer.byte_level import BYTE_OF, CHARACTER_OF
from llamactl.tokenizer.gpt2_download import find_vocabulary
from llamactl.tokenizer.library import LibraryTokenizer, Parts
from llamactl.tokenizer.plain_bpe import END_OF_TEXT, is_plain, pair_of, plain_vocabulary
from llamactl.tokenizer.text_end import mark_end, read_end

# GPT-2's pattern that splits text into words before merging, which `ByteLevel` of Hugging Face tokenizers has built in.
# In tiktoken's version, whose possessive quantifiers can't backtrack (openai/tiktoken, openai_public.py).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer:
    """A tokenizer that gives exactly the ids that its tokenizer.json defines.

    tiktoken encodes plain byte-level BPE, as llamactl makes it; all others are the `tokenizers` library's.
    """

    def __init__(self, description: str, end: str | int | None = None) -> None:
        """Parse the text of a tokenizer.json; raises DataError when it can't be used.

        `end` is the name or the id of the token that ends a text; None: by its name, or as the text says.
        """
        self.chat_template = ""  # of the model that it comes from: Jinja, which `chat.encode_chat` runs in a sandbox
        self.template_names: dict[str, str] = {}  # of control tokens, as that template calls them: bos_token, eos_token
        self.library: LibraryTokenizer | None = None
        try:
            self.description = description if end is None else mark_end(description, end)
            tree = parse_json(self.description)
            added = tree.get("added_tokens", [])
            self._names = {token["id"]: token["content"] for token in added}
            self.controls = {token["content"]: token["id"] for token in added if token.get("special")}
            if is_plain(tree):
                spelled = plain_vocabulary(tree)
                parts = Parts([*spelled, *(b"" for _ in added)], len(spelled), (len(spelled),))
            else:
                self.library = LibraryTokenizer(self.description, tree)
                parts = self.library.parts
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"It has no {error}." if isinstance(error, KeyError) else f"{str(error)[:1].upper()}{str(error)[1:]}."
            raise DataError("This tokenizer.json can't be used.", why) from error
        self._bytes, self.end, self.start, self.lossless = parts

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, control tokens included."""
        return len(self._bytes)

    @property
    def digest(self) -> str:
        """Return the sha256 of the tokenizer.json."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    def is_same(self, other: "Tokenizer") -> bool:
        """Check whether another tokenizer has the same ids for every text, whatever it puts before and after one."""
        return self._definition == other._definition

    def extends(self, other: "Tokenizer") -> bool:
        """Check whether this is another tokenizer, perhaps with more control tokens: whatever that one encodes has its ids."""
        mine, theirs = dict(self._definition), dict(other._definition)
        added = [[(token["id"], token["content"]) for token in each.pop("added_tokens", [])] for each in (mine, theirs)]
        return mine == theirs and added[0][: len(added[1])] == added[1]

    @cached_property
    def _definition(self) -> dict[str, Any]:
        around = ("post_processor", "truncation", "padding")
        return {name: value for name, value in json.loads(self.description).items() if name not in around}

    @property
    def separator(self) -> tuple[int, ...]:
        """Return the ids between two documents: the end-of-text token, and what begins a text where that is another one."""
        return (self.end,) if self.start == (self.end,) else (self.end, *self.start)

    def name_of(self, control: int) -> str:
        """Return how a control token is written."""
        return str(self._names[control])

    def encode(self, text: str) -> np.ndarray:
        """Encode a text as uint32 ids, never as a control token; raises UnicodeEncodeError on lone surrogates."""
        # Only for its error: tiktoken's own `encode` replaces lone surrogates silently, and decoding gives another text.
        text.encode("utf-8")
        if self.library:
            return self.library.encode(text)
        ids: np.ndarray = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids

    def encode_with_controls(self, text: str) -> list[int]:
        """Encode a text of our own making, in which the names of control tokens stand for those tokens."""
        text.encode("utf-8")
        if self.library:
            return self.library.encode_with_controls(text)
        ids: list[int] = self._encoding.encode(text, allowed_special="all")
        return ids

    def encode_opening(self, text: str) -> list[int]:
        """Encode a text as a document begins: after the ids that begin one. It is never empty."""
        return [*self.start, *self.encode(text).tolist()] or [self.end]

    def encode_after_end(self, text: str) -> list[int]:
        """Encode a text as a document begins, after at least one id, so that each id of the text is predicted by another."""
        return [*(self.start or (self.end,)), *self.encode(text).tolist()]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, without control tokens; bytes that are no complete character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Decode ids to bytes, which may end in the middle of a character; control tokens have none."""
        # The embedding may have more rows than there are ids, so a model can sample ids above the last one.
        return b"".join(self._bytes[i] for i in ids if i < len(self._bytes))

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Return the number of bytes of each id (int64, shape vocab_size; 0 for control tokens)."""
        return np.array([*map(len, self._bytes)])

    @cached_property
    def _encoding(self) -> Any:
        """Build tiktoken's encoding, once."""
        import tiktoken

        # tiktoken merges the pair with the lowest rank first, and its rank is its id: hence the checks in is_plain.
        ranks = {token: rank for rank, token in enumerate(self._bytes[: self.end])}
        return tiktoken.Encoding("llamactl", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=self.controls)


def read_tokenizer(path: Path, root: Path | None = None, end: str | int | None = None) -> Tokenizer:
    """Read a tokenizer.json as `records.open_file` opens it; raises DataError that names the file."""
    try:
        return Tokenizer(read_text(path, root), end)
    except DataError as error:
        message = error.what if str(path) in error.what else f"{path} can't be used."
        raise DataError(message, error.why, error.fix) from error


def _describe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> str:
    """Return the text of the tokenizer.json of a byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer.to_str()


def gpt2_tokenizer() -> Tokenizer:
    """Load GPT-2's BPE of 50,257 ids, from OpenAI's vocab.bpe."""
    # The first line is the version of the file.
    merges = [tuple(line.split(" ")) for line in find_vocabulary().read_text("utf-8").splitlines()[1:]]
    tokens = [*BYTE_OF, *(left + right for left, right in merges)]
    return Tokenizer(_describe({token: i for i, token in enumerate(tokens)}, [(left, right) for left, right in merges]))


def byte_tokenizer() -> Tokenizer:
    """Build a tokenizer whose ids are bytes: it needs no training, and gives about four times the tokens of GPT-2's."""
    return Tokenizer(_describe({CHARACTER_OF[byte]: byte for byte in range(256)}, []))


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a BPE of `vocab_size` ids on texts; the same texts give the same tokenizer."""
    progress = learn_bpe(texts, vocab_size)
    while True:
        try:
            next(progress)
        except StopIteration as stop:
            tokenizer: Tokenizer = stop.value
            return tokenizer


def learn_bpe(texts: Iterator[str], vocab_size: int) -> Generator[int, None, Tokenizer]:
    """Train a BPE as `train_bpe` does, yield the bytes of text read so far several times per second, and return it.

    To bound memory, words are cut at `LONGEST_WORD`, and reading ends at `LARGEST_LEXICON` bytes of different words.
    """
    feed = _Feed(texts)
    results: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(_train(feed, vocab_size))
        except BaseException as error:
            errors.append(error)

    # No Python signal handler runs while the library merges, so it has its own thread. As a daemon it ends with the process.
    thread = Thread(target=work, name="bpe", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            yield feed.bytes_read
    finally:
        # If the caller closes this generator, the thread reads no more texts.
        feed.stopped = True
    if feed.error or errors:
        raise feed.error or errors[0]
    model = json.loads(results[0])["model"]
    return Tokenizer(_describe(model["vocab"], [(left, right) for left, right in map(pair_of, model["merges"])]))


POLL_SECONDS = 0.2  # between two reports of a BPE in training
LONGEST_WORD = 256  # characters: DNA and unpunctuated Chinese have no spaces to split at
LARGEST_LEXICON = 8 << 20  # bytes of different words; each takes some 90 bytes of memory while merges are learned
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}")
_WORDS = re.compile(rf"\w{{1,{LONGEST_WORD}}}")


class _Feed:
    """Texts for the training thread, until they have enough different words or training is stopped."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.bytes_read = 0
        self.stopped = False
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[list[str]]:
        words: set[str] = set()
        size = 0
        try:
            for text in self._texts:
                new_words = set(_WORDS.findall(text)) - words
                words |= new_words
                size += sum(len(word.encode("utf-8", "replace")) for word in new_words)
                self.bytes_read += len(text.encode("utf-8", "replace"))
                ends = [match.end() for match in _LONG_WORD.finditer(text)]
                yield [text[start:end] for start, end in pairwise([0, *ends, len(text)])]
                if self.stopped or size > LARGEST_LEXICON:
                    return
        # Kept for the waiting thread, which raises it unchanged.
        except Exception as error:
            self.error = error


def _train(texts: Iterable[list[str]], vocab_size: int) -> str:
    """Train a BPE with Hugging Face's library and return its tokenizer.json."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # One id is left for the end-of-text token, which _describe adds as the last one.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=sorted(BYTE_OF), special_tokens=[], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    return str(trained.to_str())


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"gpt2": gpt2_tokenizer, "bytes": byte_tokenizer}


def parse_bpe_size(name: str) -> int:
    """Return N of `bpe:N`, or 0 for another kind of name; raises UsageError for an N out of range."""
    kind, colon, size = name.partition(":")
    if kind != "bpe" or not colon:
        return 0
    # 257 ids are the bytes and the end-of-text token: there would be no merge to learn.
    if not re.fullmatch(r"\d{3,7}", size) or not 257 < int(size) <= 1_000_000:
        raise UsageError(
            f"{name!r} is not a tokenizer.", "N is a vocabulary size from 258 to 1,000,000.", "Try: --tokenizer bpe:8192"
        )
    return int(size)


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer that needs no training: gpt2, bytes, or the path of a tokenizer.json or of a folder with one."""
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    # By lexists, for which a name that is too long or odd for a path is that of nothing.
    exists = os.path.lexists(name)
    path = Path(name) / "tokenizer.json" if exists and Path(name).is_dir() else Path(name)
    if not exists or path.suffix != ".json" or not path.is_file():
        why = "Choose gpt2, bpe:N, bytes, a tokenizer.json or a folder with one."
        raise UsageError(f"There is no tokenizer {name[:200]!r}.", why)
    # Resolved: in the hub's cache it is a link.
    return read_tokenizer(path.resolve(), end=read_end(path.parent))

"""The unit of reading: a file, or a row group of one."""

from collections.abc import Iterator
from dataclasses import dataclass

from llamactl.corpus.splitting import LONGEST_TEXT, TooLong
from llamactl.errors import DataError

# A row's text, None where it has none, or why it can't be read: whoever asks decides whether that is an error.
Documents = Iterator[str | TooLong | DataError | None]


@dataclass(frozen=True)
class Part:
    """A file, or a part of one, with everything that a worker process needs to read it."""

    # A key of `readers.READERS`.
    kind: str
    location: str
    size: int
    index: int = 0
    cut: int = LONGEST_TEXT
    revision: str = ""
    config: str = ""
    stamp: tuple[int, ...] = ()  # what `stamp_of` told of the file when it was planned; empty for one that is not here
    split: str = "files"  # the rule by which a text file is cut; `cut` is the length of "chunks"
    max_doc_bytes: int = 0  # of a text file, which is judged before it is cut: longer documents are left out; 0: none are
    encoding: str = ""  # of text without a byte order mark; empty: UTF-8

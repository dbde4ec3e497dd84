"""Kinds of files, by name and by first bytes, and the command that makes text of a kind that holds none."""

import shlex
from pathlib import Path
from typing import NamedTuple

# Programs, and documents that are written as programs are.
CODE = {
    ".adoc", ".asm", ".bash", ".bib", ".c", ".cc", ".cjs", ".clj", ".coffee", ".cpp", ".cs", ".cu", ".cuh",
    ".cxx", ".d", ".dart", ".el", ".elm", ".erl", ".ex", ".exs", ".f", ".f03", ".f90", ".fish", ".fs", ".fsx", ".go",
    ".gradle", ".groovy", ".h", ".hh", ".hpp", ".hs", ".hxx", ".ino", ".jav", ".java", ".jl", ".js", ".jsx", ".kt",
    ".kts", ".lisp", ".lua", ".m", ".mjs", ".ml", ".mli", ".nim", ".org", ".pas", ".php", ".pl", ".pm", ".proto",
    ".ps1", ".py", ".pyi", ".pyx", ".r", ".rb", ".rkt", ".rs", ".scala", ".scm", ".sh", ".sol", ".sql",
    ".srt", ".sv", ".svelte", ".swift", ".tcl", ".tex", ".ts", ".tsx", ".v", ".vb", ".vhd", ".vhdl", ".vim", ".vtt",
    ".vue", ".zig", ".zsh",
}  # fmt: skip

# The reader of each ending. Letters may be small or capital, and text may be packed as well: .jsonl.gz, .TXT.XZ.
KINDS = {
    **dict.fromkeys(sorted(CODE), "text"),
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
PACKED = (".gz", ".zst", ".xz", ".bz2")
TABLES = ("parquet", "arrow")  # packed inside, and read from several places at once

READABLE = (
    f"{' '.join(ending for ending in KINDS if ending not in {'.text', '.markdown', *CODE})}, source code "
    f"(.py .c .js .tex ...), text also with {' '.join(PACKED)}, and folders of datasets' save_to_disk"
)

# Names of what editors, systems and notebooks leave beside people's files.
ABOUT = ("readme.md", "readme.rst", "readme", "license.md", "license", "copying")  # about the files beside them
CLUTTER = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "lost+found")


class Other(NamedTuple):
    """A kind of file that holds no plain text, and the command that converts it; {} is the file."""

    name: str
    command: str

    def way_out(self, location: str) -> str:
        """Return the command with the file's name in it."""
        return self.command.replace("{}", shlex.quote(location))


_PANDOC = "Turn it into text first: pandoc -t plain {} -o document.txt"
_UNPACK = "Rename it, so that its name ends in "
_NO_TEXT = "Only text can be prepared."
PDF = Other("a PDF", "Turn it into text first: pdftotext {} document.txt")
ZIP = Other("a zip archive", "Unpack it first: unzip {} -d folder")
TAR = Other("a tar archive", "Unpack it first: mkdir folder && tar xf {} -C folder")
HTML = Other("a web page", _PANDOC)
# No command is offered: to open a pickle is to run its code.
PICKLE = Other("a pickle, which runs code when it is opened", "Write its text as .jsonl or .txt with the program that made it.")
NUMPY = Other("an array of NumPy", "Prepare the text it was made from.")
SQLITE = Other("an SQLite database", 'Write its text out first: sqlite3 -json {} "select text from TABLE" > rows.json')
SHEET = Other("a spreadsheet", "Save it as CSV first: libreoffice --convert-to csv {}")
OFFICE = Other("a document of a word processor", _PANDOC)

ENDINGS = {
    ".pdf": PDF,
    ".zip": ZIP,
    ".tar": TAR,
    ".tgz": TAR,
    ".tbz2": TAR,
    ".txz": TAR,
    ".7z": Other("a 7z archive", "Unpack it first: 7z x {}"),
    ".rar": Other("a rar archive", "Unpack it first: unrar x {}"),
    ".docx": OFFICE,
    ".doc": Other("a document of Word", "Turn it into text first: libreoffice --convert-to txt:Text {}"),
    ".odt": OFFICE,
    ".rtf": OFFICE,
    ".epub": OFFICE,
    ".xlsx": SHEET,
    ".xls": SHEET,
    ".ods": SHEET,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".pkl": PICKLE,
    ".pickle": PICKLE,
    ".pt": PICKLE,
    ".bin": Other("a file of numbers", "Prepare the text it was made from."),
    ".npy": NUMPY,
    ".npz": NUMPY,
    ".db": SQLITE,
    ".sqlite": SQLITE,
    ".sqlite3": SQLITE,
    ".h5": Other("an HDF5 file", "Write its text as .jsonl or .parquet first."),
    ".safetensors": Other("weights of a model", _NO_TEXT),
}

# Offset in the file, the bytes there, and the kind of file that starts like that.
MAGIC = (
    (0, b"%PDF-", PDF),
    (
        0,
        b"PK\x03\x04",
        Other("a zip archive, or a document that is one", "Unpack it, or turn it into text: unzip {} -d folder"),
    ),
    # A tar archive has its signature at the end of the first file's header.
    (257, b"ustar", TAR),
    (0, b"\x1f\x8b", Other("packed with gzip", f"{_UNPACK}.gz: mv {{}} {{}}.gz")),
    (0, b"\x28\xb5\x2f\xfd", Other("packed with zstd", f"{_UNPACK}.zst: mv {{}} {{}}.zst")),
    (0, b"\xfd7zXZ\0", Other("packed with xz", f"{_UNPACK}.xz: mv {{}} {{}}.xz")),
    (0, b"BZh", Other("packed with bzip2", f"{_UNPACK}.bz2: mv {{}} {{}}.bz2")),
    (0, b"PAR1", Other("a parquet file", f"{_UNPACK}.parquet: mv {{}} {{}}.parquet")),
    (0, b"ARROW1", Other("an Arrow file", f"{_UNPACK}.arrow: mv {{}} {{}}.arrow")),
    (0, b"SQLite format 3\0", SQLITE),
    (0, b"\x93NUMPY", NUMPY),
    # Pickle: PROTO and the protocol's number, from protocol 4 on followed by a FRAME.
    (0, b"\x80\x02", PICKLE),
    (0, b"\x80\x03", PICKLE),
    (0, b"\x80\x04\x95", PICKLE),
    (0, b"\x80\x05\x95", PICKLE),
    (0, b"{\\rtf", OFFICE),
    (0, b"\xd0\xcf\x11\xe0", ENDINGS[".doc"]),
    (0, b"\x89HDF", ENDINGS[".h5"]),
    (0, b"7z\xbc\xaf\x27\x1c", ENDINGS[".7z"]),
    (0, b"Rar!\x1a\x07", ENDINGS[".rar"]),
    (0, b"\x89PNG", Other("a picture", _NO_TEXT)),
    (0, b"\xff\xd8\xff", Other("a picture", _NO_TEXT)),
    (0, b"GIF87a", Other("a picture", _NO_TEXT)),
    (0, b"GIF89a", Other("a picture", _NO_TEXT)),
    (0, b"\x7fELF", Other("a program", _NO_TEXT)),
    # The version of the tag, 2.2 to 2.4.
    (0, b"ID3\x02", Other("music", _NO_TEXT)),
    (0, b"ID3\x03", Other("music", _NO_TEXT)),
    (0, b"ID3\x04", Other("music", _NO_TEXT)),
    (0, b"OggS\0", Other("music", _NO_TEXT)),
)
# Formats that are text themselves, but not of the kind to learn.
MARKUP = (b"%PDF-", b"{\\rtf")


def split_endings(path: Path) -> tuple[str, str]:
    """Return the ending that names a file's format and the one that names its compression, in lower case; each may be empty."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    return (suffixes[-1] if suffixes else ""), packed


def find_kind(path: Path) -> str:
    """Return the reader that a file's name asks for; empty when there is none."""
    ending, packed = split_endings(path)
    kind = KINDS.get(ending, "")
    # Tables are read at several positions, which a compressed stream does not allow.
    return "" if packed and kind in TABLES else kind


def describe_ending(path: Path) -> Other | None:
    """Return the kind of a file whose name says that it is not plain text; None for any other name."""
    return ENDINGS.get(split_endings(path)[0])


def describe_magic(head: bytes) -> Other | None:
    """Return the kind of a file by its first bytes; None for text and for unknown formats."""
    return next((other for place, magic, other in MAGIC if head.startswith(magic, place) and _is_proof(magic, head)), None)


def _is_proof(magic: bytes, head: bytes) -> bool:
    """Check whether a signature says what a file is: text may begin with letters such as BZh, but has no zero byte."""
    letters = magic.isascii() and magic.decode().isprintable()
    return not letters or magic in MARKUP or b"\0" in head


def is_clutter(name: str) -> bool:
    """Check whether a file or folder is hidden, a backup, or left behind by a system or an editor."""
    return name.startswith((".", "~$", "#")) or name.endswith("~") or name in CLUTTER

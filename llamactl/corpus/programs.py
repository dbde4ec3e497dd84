"""What is text in a folder of programs: source code in UTF-8, and of JSON and tables only what says that it is a corpus."""

import codecs
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from llamactl.corpus import readers
from llamactl.corpus.columns import choose_column, is_corpus
from llamactl.corpus.kinds import CODE, describe_magic, split_endings
from llamactl.corpus.parts import Part
from llamactl.corpus.streams import open_regular
from llamactl.corpus.text_files import choose_encoding, is_text
from llamactl.errors import DataError

# Bytes of a file that must be text in its encoding, and the first ones of them, few of which may control something.
LOOKED_AT, FIRST = 1 << 20, 4 << 10


def is_code(name: str | Path) -> bool:
    """Check whether a name is that of source code."""
    return split_endings(Path(name))[0] in CODE


def is_readable(path: Path, encoding: str = "") -> bool:
    """Check whether a file is text in an encoding, by default UTF-8 or that of its mark, as far as its first part tells."""
    try:
        with open_regular(str(path)) as file:
            part = file.read(LOOKED_AT)
    except OSError:
        return False
    if describe_magic(part) or not is_text(part[:FIRST]):
        return False
    name, start = choose_encoding(part, encoding or None)
    try:
        # Incremental, as the part may end within a character.
        codecs.getincrementaldecoder(name)().decode(part[start:])
    except UnicodeDecodeError:
        return False
    return True


def without_settings(parts: list[Part], patterns: Iterable[str]) -> list[Part]:
    """Leave out JSON and tables that programs have beside them and that are no corpus, unless a pattern names them."""
    if not any(is_code(part.location) for part in parts):
        return parts
    # A pattern with an ending names files of that kind, whether the shell has replaced it by them or not.
    named = [Path(pattern).name for pattern in patterns if Path(pattern).suffix]

    def is_named(part: Part) -> bool:
        return any(fnmatch(Path(part.location).name, name) for name in named)

    return [part for part in parts if part.kind == "text" or is_named(part) or _holds_text(part)]


def _holds_text(part: Part) -> bool:
    """Check whether the columns of a part say what its text is; a table that can't be read is for its reader to report."""
    try:
        kinds = readers.column_kinds(part)
    except (DataError, OSError, EOFError):
        return part.kind != "json"
    if part.kind == "json":  # settings of programs have some text, too
        return is_corpus(kinds)
    try:
        return not kinds or bool(choose_column(kinds, part.location))
    except DataError:
        return False

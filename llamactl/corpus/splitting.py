"""Split text files into documents: by file, line, blank line or separator, or by a rule chosen from the text itself.

A rule is a function from text to a list of strings, the last of which may be incomplete. `split_documents` feeds it block by
block, so that memory does not grow with the file. Regular expressions are RE2's, which take linear time on any input.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

from llamactl.errors import UsageError, suggest_nearest

LONGEST_TEXT = 1_000_000  # characters; what is longer becomes several documents
SHOWN = 256 << 10  # characters of each file that are looked at to choose a rule
FEW = 20  # files, lines or paragraphs: fewer are no collection of documents

RULES = {
    "files": "each file is a document",
    "chunks": "stretches of a file, ended at a blank line",
    "paragraphs": "text between blank lines",
    "lines": "each line",
}
HELP = "auto, files, paragraphs, lines, chunks, a separator such as '<|endoftext|>', or re:REGEX (both are dropped)."

END_OF_TEXT_LINE = re.compile(r"^<\|endoftext\|>[ \t\r]*$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_BOUNDARIES = (  # the best first; a document ends behind what is found
    _BLANK_LINE,
    re.compile(r"\n"),
    re.compile(r"[.!?][\"'”’)\]]*\s|[。！？…]"),
    re.compile(r"\s"),
)


class TooLong(NamedTuple):
    """A document that is left out, as it has more bytes than were allowed."""

    size: int


@dataclass(frozen=True)
class Choice:
    """A rule as the recipe stores it, and why it was chosen: empty when the user chose it."""

    rule: str
    why: str = ""


def read_rule(typed: str) -> str:
    """Check a rule that the user typed; raises UsageError."""
    if typed in ("auto", *RULES):
        return typed
    if typed.startswith("re:"):
        _regex_cutter(typed[3:])(" ")
        return typed
    if not typed or (typed.isalpha() and typed.islower()):
        why = suggest_nearest(typed, ["auto", *RULES])
        raise UsageError(f"{typed!r} is not a rule for --split.", why, f"To split at that word: --split 're:{typed or 'WORD'}'")
    return typed


def choose_rule(texts: Sequence[str]) -> Choice:
    """Choose a rule for a few files by their first `SHOWN` characters; many files are documents as they are."""
    text = "\n".join(texts)
    lines = [line.strip() for text in texts for line in text.splitlines()]
    written = [line for line in lines if line]
    blank_lines = sum(len(_BLANK_LINE.findall(text)) for text in texts)
    if len(END_OF_TEXT_LINE.findall(text)) >= 2:
        return Choice("re:(?m)^<\\|endoftext\\|>[ \\t\\r]*$", "<|endoftext|> stands on lines of its own")
    # One blank line in 200 lines is enough to cut at.
    if blank_lines >= 2 and len(written) < 200 * blank_lines:
        return Choice("chunks", "there are few files, with blank lines in them")
    if len(written) < FEW or len(written) < 100 * (len(texts) - 1):
        return Choice("files")
    if _is_wrapped(written):
        return Choice("chunks", "the lines are those of wrapped text, without blank lines")
    return Choice("lines", f"there is no blank line among {len(written):,} lines")


def _is_wrapped(lines: list[str]) -> bool:
    """Check whether lines are wrapped at a width: nearly equal in length, and most end in the middle of a sentence."""
    lengths = sorted(map(len, lines))
    # The 95th percentile instead of the maximum, so that a few longer lines don't matter.
    median, long = lengths[len(lengths) // 2], lengths[len(lengths) * 95 // 100]
    ended = sum(line.endswith((".", "!", "?", '"', "”", "。", "！", "？", ";", ":")) for line in lines)
    spaced = sum(" " in line for line in lines)
    return 40 <= long <= 120 and median >= 0.8 * long and ended < 0.4 * len(lines) and spaced > 0.9 * len(lines)


def rule_occurs(rule: str, text: str) -> bool:
    """Check whether a rule's separator occurs in a text; True for rules without a separator."""
    return rule in RULES or len(_cutter(rule)(text)) > 1


def split_documents(blocks: Iterable[str], rule: str, chunk: int, max_bytes: int = 0) -> Iterator[str | TooLong]:
    """Yield the documents of a text, a long one in parts; `chunk` is the length in characters after which "chunks" end.

    A document of more than `max_bytes` (0: any) is left out; until its end is known, as much is held in memory.
    """
    held: list[str] = []
    size = 0
    for begins, part in _parts(blocks, rule, chunk):
        if not max_bytes:
            yield part
            continue
        if begins:
            yield from held if size <= max_bytes else [TooLong(size)]
            held, size = [], 0
        size += len(part.encode("utf-8", "surrogatepass"))
        held = [*held, part] if size <= max_bytes else []
    yield from held if size <= max_bytes else [TooLong(size)]


def _parts(blocks: Iterable[str], rule: str, chunk: int) -> Iterator[tuple[bool, str]]:
    """Yield the parts of documents, each with whether it begins one: what is longer than LONGEST_TEXT has several."""
    if rule == "chunks":
        yield from zip(repeat(True), _chunks(blocks, chunk), strict=False)
        return
    if rule == "files":
        yield from zip(chain([True], repeat(False)), _chunks(blocks, 0), strict=False)
        return
    cut, rest, begins, yielded = _cutter(rule), "", True, False
    for block in blocks:
        *pieces, rest = cut(rest + block)
        for piece in pieces:
            if piece and not piece.isspace():
                yielded = True
                yield begins, piece
            begins = True
        # A separator that does not come must not make memory grow with the file.
        if len(rest) > LONGEST_TEXT:
            *more, rest = cut_long(rest)
            for part in more:
                yielded = True
                yield begins, part
                begins = False
    # A file without text yields one empty document, so that it is counted as read and skipped.
    if not yielded or (rest and not rest.isspace()):
        yield begins, rest


def _cutter(rule: str) -> Callable[[str], list[str]]:
    if rule == "lines":
        return lambda text: [line.removesuffix("\r") for line in text.split("\n")]
    if rule == "paragraphs":
        return lambda text: _BLANK_LINE.split(text)
    if rule.startswith("re:"):
        return _regex_cutter(rule[3:])
    separator = unescape_separator(rule)
    return lambda text: text.split(separator)


def unescape_separator(typed: str) -> str:
    r"""Replace \n, \r, \t, \f and \\, as typed in a shell, by the characters that they stand for."""
    meant = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}
    return re.sub(r"\\([nrtf\\])", lambda found: meant[found[1]], typed)


def _regex_cutter(pattern: str) -> Callable[[str], list[str]]:
    """Return a function that splits at a regular expression; raises UsageError if RE2 rejects it or it matches empty text."""
    import pyarrow
    from pyarrow import compute

    def cut(text: str) -> list[str]:
        # RE2 comes with pyarrow, which reads the tables anyway.
        pieces: list[str] = compute.split_pattern_regex(pyarrow.scalar(text, pyarrow.large_string()), pattern).as_py()
        return pieces

    try:
        empty = bool(compute.match_substring_regex(pyarrow.scalar(""), pattern).as_py())
    except (pyarrow.ArrowException, UnicodeError) as error:
        why = f"{str(error).splitlines()[0]}. It is RE2's syntax, without look-around and back-references."
        raise UsageError(
            f"--split: {pattern!r} is not a regular expression.", why, "Example: --split 're:\\n---+\\n'"
        ) from error
    if empty:
        raise UsageError(
            f"--split: {pattern!r} matches empty text, so it would split everywhere.", "", "Match at least one character."
        )
    return cut


def _chunks(blocks: Iterable[str], chunk: int) -> Iterator[str]:
    """Yield stretches of at least `chunk` characters that end at a blank line; of LONGEST_TEXT if `chunk` is 0."""
    # Without a chunk size, cut as late as allowed; the last tenth is for finding a boundary.
    low, high = (chunk, min(2 * chunk, LONGEST_TEXT)) if chunk else (LONGEST_TEXT * 9 // 10, LONGEST_TEXT)
    rest, uncut = "", True
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > high:
            end = find_boundary(rest, start + low, start + high)
            yield rest[start:end]
            start, uncut = end, False
        rest = rest[start:]
    if chunk and len(rest) > low and (found := _BLANK_LINE.search(rest, low)) and found.end() < len(rest):
        yield rest[: found.end()]
        rest = rest[found.end() :]
    if rest or uncut:
        yield rest


def cut_long(text: str) -> list[str]:
    """Cut a text into documents of at most `LONGEST_TEXT` characters."""
    return [text] if len(text) <= LONGEST_TEXT else list(_chunks([text], 0))


def find_boundary(text: str, low: int, high: int) -> int:
    """Return where to cut between `low` and `high`: after the first blank line, else line, sentence, word, else at `high`."""
    for boundary in _BOUNDARIES:
        if (found := boundary.search(text, low, high)) and found.end() < len(text):
            return found.end()
    return high

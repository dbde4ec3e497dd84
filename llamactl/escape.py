"""Escape text of a corpus or a model, so that it cannot control a terminal, a page or a file that shows it."""

import html
import json
import unicodedata

MARKUP = "\\`*_{}[]()#+!|~$@:"  # - and . are markup only at the beginning of a line


def escape_control_chars(text: str) -> str:
    """Return the text with control, format, surrogate and private-use characters written as escape sequences.

    Such characters (CSI, OSC, bidirectional controls, ...) could move the cursor or reverse the direction of the text. Line
    feeds, tabs and the zero-width joiner and non-joiner are kept.
    """
    return "".join(map(_spelled, text))


def escape_html(text: str) -> str:
    """Return text for an HTML page that can neither end its element or attribute nor control what displays it."""
    return html.escape(escape_control_chars(text), quote=True)


def escape_markdown(text: str) -> str:
    """Return the text as one line of plain text for a Markdown page.

    Control characters, Markdown markup and HTML, which Markdown would pass through, are escaped.
    """
    return "".join(
        f"\\{letter}" if letter in MARKUP else html.escape(letter) for letter in " ".join(escape_control_chars(text).split())
    )


def embed_json(value: object) -> str:
    """Serialise a value as JSON for a script element: nothing in it can end that element or a line."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return "".join(f"\\u{ord(letter):04x}" if letter in "<>&\u2028\u2029" else letter for letter in text)


def path_to_text(path: str) -> str:
    r"""Return a path as text that can be stored: each byte that is not valid UTF-8 becomes an escape such as \xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def escape_toml(text: str) -> str:
    """Return a TOML document with such characters in its strings written as TOML escapes; the values do not change."""
    return "".join(f"\\U{ord(character):08x}" if _steers(character) else character for character in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii") if _steers(character) else character


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") and character not in "\n\t\u200c\u200d"

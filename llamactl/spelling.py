"""Text of a corpus or a model, with whatever could steer what shows it spelled out."""

import unicodedata


def safe(text: str) -> str:
    """The same text without the characters that move a cursor, end a line or turn a direction around (CSI, OSC, bidi, ...)."""
    return "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    steers = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") and character not in "\n\t\u200c\u200d"
    return character.encode("unicode_escape").decode("ascii") if steers else character

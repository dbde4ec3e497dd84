"""Decode text files by one rule: a byte order mark decides, else the requested encoding, else UTF-8.

Nothing is replaced silently. Bytes that are not text in their encoding are an error that names the likely encoding.
"""

import codecs
import re
from encodings.aliases import aliases

from llamactl.errors import DataError, UsageError, suggest_nearest

MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf_32_le"),
    (codecs.BOM_UTF32_BE, "utf_32_be"),
    (codecs.BOM_UTF8, "utf_8"),
    (codecs.BOM_UTF16_LE, "utf_16_le"),
    (codecs.BOM_UTF16_BE, "utf_16_be"),
)

SHOWN = 16 << 10  # bytes from which an encoding is guessed
SHORTEST = 16  # bytes; fewer say nothing about where their zeros are

# The most frequent letters of texts in an encoding. The guess is the encoding with the largest share of them.
_LATIN = "éèàùâêîôûçëïäöüßñáíóúãõåæøœÉÀÄÖÜÅØ¿¡«»’‘“”–—…°§£€"
_CENTRAL = "ąćęłńóśźżčďěňřšťůýžáéíúőűöüăâîŁŚŻŠČŽ„”’–"
_CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъёіїєВНСПОКМ«»—"
_GREEK = "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώΑΕΗΤΟΚΠΜΣ"
_CHINESE = (
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没日于起还发"
    "成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己"
    "話兒這來個說們為時會過學對後麼還發無開當見經頭從動兩長樣現將與進實點種聲氣機給電車國東書語愛讓應體關門問間，。、：；！？「」《》“”"
)
_KOREAN = (
    "이다는을에의가고하지은로를한사기도나어리스자들아서시해인그대있일라만부정보주수여전상구오면할과니원제장우게습국요년성공적"
)
_KANA = "".join(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FD)])) + "。、「」"
TYPICAL = {
    "cp1252": _LATIN,
    "cp1251": _CYRILLIC,
    "koi8_r": _CYRILLIC,
    "cp866": _CYRILLIC,
    "iso8859_5": _CYRILLIC,
    "cp1250": _CENTRAL,
    "iso8859_2": _CENTRAL,
    "cp1253": _GREEK,
    "gb18030": _CHINESE,
    "big5": _CHINESE,
    "shift_jis": _KANA,
    "euc_jp": _KANA,
    "cp949": _KOREAN,
    "mac_roman": _LATIN,
    "cp850": _LATIN,
    "latin_1": _LATIN,
}
OTHERS = _CYRILLIC + _GREEK + _CHINESE + _KOREAN + _KANA
_ABOVE_ASCII = re.compile(rb"[\x80-\xff]")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f"))
LIKELY = 0.4  # share of typical letters from which a guess is worth naming; kana are half of Japanese


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """Decode a complete text without its byte order mark; raises DataError with a guess, UsageError for an unknown encoding."""
    name, start = choose_encoding(data, encoding)
    if not encoding and not start and (guess := guess_wide(data)):
        raise DataError("It is not UTF-8 text.", f"It looks like {guess}.", encoding_option(guess))
    try:
        return data[start:].decode(name)
    except UnicodeError as error:
        guess = guess_encoding(data)
        raise DataError(
            f"It is not {show_name(name)} text.", explain_decode_error(error, guess), encoding_option(guess)
        ) from error


def choose_encoding(head: bytes, encoding: str | None = None) -> tuple[str, int]:
    """Return the encoding of a file that begins with `head`, and the length of its byte order mark in bytes."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name, len(mark)
    return (find_encoding(encoding) if encoding else "utf_8"), 0


def is_text(head: bytes) -> bool:
    """Check whether a file that begins with `head` is text in some encoding."""
    name, start = choose_encoding(head)
    text = head[start:].decode(name, "replace")
    # The sample may end within a character, and logs contain a control character here and there.
    wrong = text.count("\ufffd") + sum(character < " " and character not in "\t\n\r\f\x1b" for character in text)
    return wrong <= 1 + len(text) // 1000 or bool(guess_encoding(head))


def find_encoding(name: str) -> str:
    """Return Python's name of a text encoding; raises UsageError that names the nearest."""
    if codec := _text_encoding(name):
        return codec
    known = [alias for alias in {*aliases, *aliases.values()} if _text_encoding(alias)]
    closest = suggest_nearest(name.lower().replace("-", "_"), known)
    raise UsageError(f"{name!r} is not an encoding.", closest if closest.startswith("Did") else "", USUAL)


USUAL = "Usual ones: --encoding utf-8, utf-16, latin-1, cp1252, gb18030, shift_jis, euc_kr, koi8-r"

# Ways to write names and source code in ASCII, and what only Windows has.
NO_ENCODINGS = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem")


def _text_encoding(name: str) -> str:
    """Return Python's name of an encoding; empty for an unknown one, or one that is not of text (rot13, base64)."""
    try:
        codec = codecs.lookup(name).name.replace("-", "_")
        return codec if codec not in NO_ENCODINGS and "a".encode(codec) else ""
    except (LookupError, ValueError):
        return ""


def guess_encoding(data: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8; empty when none is likely."""
    if any(data.startswith(mark) for mark, _ in MARKS):
        return ""
    first = _ABOVE_ASCII.search(data)
    # Start at a multiple of 4 bytes, so that UTF-16 and UTF-32 units stay aligned.
    start = max(0, first.start() - 64) // 4 * 4 if first else 0
    shown = data[start : start + SHOWN]
    if _is_mixed(shown):
        return ""
    if wide := guess_wide(data):
        return wide
    scores = {name: _score(shown, name, letters) for name, letters in TYPICAL.items()}
    # The factor prefers other encodings on a near tie, as UTF-16 turns most pairs of bytes into some character.
    scores |= {name: 0.9 * _score(shown, name, OTHERS) for name in ("utf_16_le", "utf_16_be")}
    best = max(scores, key=scores.__getitem__)
    return show_name(best) if scores[best] >= LIKELY else ""


def guess_wide(data: bytes) -> str:
    """Guess UTF-16 or UTF-32 without a mark, where half of the bytes are control codes (valid UTF-8, maybe); else empty."""
    shown = data[: min(SHOWN, len(data)) // 4 * 4]
    # UTF-16 of Latin text is half zeros; plain text has almost none.
    if len(shown) < SHORTEST or len(shown.translate(None, _CONTROL)) > 0.65 * len(shown):
        return ""
    found = {}
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = shown.decode(name, "replace")
        if not any((character < " " and character not in "\t\n\r\f") or character == "\ufffd" for character in text):
            found[name] = len({ord(character) >> 8 for character in text}), max(text)  # the wrong order scatters them
    return min(found, key=found.__getitem__, default="")


def explain_decode_error(error: UnicodeError, guess: str) -> str:
    """Describe where a text can't be decoded, and its likely encoding."""
    where = ""
    if isinstance(error, UnicodeDecodeError):
        where = f"Byte 0x{error.object[error.start]:02x} at {error.start:,}: {error.reason}."
    return " ".join(filter(None, [where, f"It looks like {guess}." if guess else ""]))


def encoding_option(guess: str) -> str:
    """Return the option to type for an encoding."""
    return f"Set it: --encoding {guess.split()[0]}" if guess else "Name its encoding: --encoding NAME"


def show_name(encoding: str) -> str:
    """Return the usual name of an encoding."""
    usual = {"utf_8": "UTF-8", "latin_1": "latin-1", "cp1252": "cp1252 (latin-1)", "shift_jis": "shift_jis", "euc_jp": "euc_jp"}
    return usual.get(encoding, encoding.replace("_", "-"))


def _is_mixed(data: bytes) -> bool:
    """Check whether most bytes above 127 are valid UTF-8: then single bytes are wrong, not the encoding."""
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) > 3 * wrong


def _score(data: bytes, encoding: str, letters: str) -> float:
    """Return the share of typical letters among non-ASCII characters; 0 when the bytes are not in the encoding.

    Accented Latin letters are next to ASCII letters, those of other scripts are not.
    """
    try:
        # Incremental: the sample may end within a character.
        text = codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeError:
        return 0.0
    if text.isascii() or any(character < " " and character not in "\t\n\r\f\x1a" for character in text):
        return 0.0
    latin, known = letters in (_LATIN, _CENTRAL), frozenset(letters)
    ascii_letter = [character.isascii() and character.isalpha() for character in f" {text} "]
    others = [place for place, character in enumerate(text) if character > "\x7f"]
    # One character alone fits almost every encoding.
    if not latin and len(others) < 2:
        return 0.0
    typical = (text[p] in known and (ascii_letter[p] or ascii_letter[p + 2]) == latin for p in others)
    return sum(typical) / len(others)

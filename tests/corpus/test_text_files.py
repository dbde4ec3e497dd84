"""The one rule by which bytes become text (`llamactl.corpus.text_files`), and the encodings that it guesses for an error."""

import codecs
import os

import pytest

from llamactl.corpus.text_files import choose_encoding, decode_text, find_encoding, guess_encoding
from llamactl.errors import DataError, UsageError

FRENCH = "Le café était fermé à Noël, où la naïveté rimait avec l'été."
RUSSIAN = "В начале было слово, и люди шли по улице домой."
CHINESE = "今天天气很好，我们去公园玩。他们说中国的经济发展很快。"
TAIWANESE = "今天天氣很好，我們去公園玩。他們說臺灣的經濟發展很快。"
JAPANESE = "今日は天気がいいので、公園に行きました。"
KOREAN = "오늘은 날씨가 좋아서 공원에 갔습니다."
POLISH = "Zażółć gęślą jaźń. Wczoraj byłem w Łodzi."


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", [FRENCH, CHINESE, "", "a\r\nb\u2028c\0"])
def test_a_byte_order_mark_decides(mark: str, text: str) -> None:
    assert decode_text(text.encode(mark), "cp1252") == text


def test_big_endian_marks() -> None:
    for mark, name in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        assert decode_text(mark + FRENCH.encode(name)) == FRENCH


def test_utf_8_is_the_default_and_an_encoding_can_be_named() -> None:
    assert decode_text(FRENCH.encode()) == FRENCH
    assert decode_text(FRENCH.encode("latin-1"), "Latin-1") == FRENCH
    assert choose_encoding(b"abc", "Shift-JIS") == ("shift_jis", 0)


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        (FRENCH, "latin-1", "cp1252"),
        (FRENCH, "cp1252", "latin-1"),
        (FRENCH, "mac-roman", "mac-roman"),
        (FRENCH, "utf-16-le", "utf-16-le"),
        ("plain ASCII letters", "utf-16-le", "utf-16-le"),
        ("plain ASCII letters", "utf-16-be", "utf-16-be"),
        ("plain ASCII letters", "utf-32-be", "utf-32-be"),
        (RUSSIAN, "koi8-r", "koi8-r"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "cp866", "cp866"),
        (RUSSIAN, "utf-16-be", "utf-16-be"),
        (CHINESE, "gb18030", "gb18030"),
        (CHINESE, "gbk", "gb18030"),
        (CHINESE, "utf-16-le", "utf-16-le"),
        (TAIWANESE, "big5", "big5"),
        (JAPANESE, "shift_jis", "shift_jis"),
        (JAPANESE, "euc_jp", "euc_jp"),
        (KOREAN, "euc_kr", "cp949"),
        (POLISH, "cp1250", "cp1250"),
        (POLISH, "iso8859-2", "iso8859-2"),
    ],
)
@pytest.mark.parametrize("before", ["", "a" * 100_000])
def test_the_error_names_the_encoding_and_the_option(text: str, encoding: str, named: str, before: str) -> None:
    """Also where ASCII comes first, as far as that is the same in the encoding."""
    with pytest.raises(DataError, match="not UTF-8") as caught:
        decode_text((before + text).encode(encoding))
    assert named in caught.value.why
    assert find_encoding(caught.value.fix.split()[-1])
    assert decode_text(text.encode(encoding), caught.value.fix.split()[-1]) == text


@pytest.mark.parametrize("data", [b"na\xc3\xafve \xc3\x9cn\xc3\xafcode" * 3 + b"\xe9", os.urandom(5_000)])
def test_single_bad_bytes_and_noise_have_no_guess(data: bytes) -> None:
    assert guess_encoding(data) == ""
    with pytest.raises(DataError, match="--encoding NAME"):
        decode_text(data)


@pytest.mark.parametrize(("name", "says"), [("utf-9", "utf_8"), ("latin-2x", "latin2"), ("koi8", "koi8"), ("shiftjs", "shift")])
def test_an_unknown_encoding_leads_to_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UsageError, match="is not an encoding") as caught:
        find_encoding(name)
    assert says in caught.value.why


@pytest.mark.parametrize("name", ["rot13", "base64", "hex", "idna", "undefined", "zip", "", "a\0b", "mbcs"])
def test_what_is_no_encoding_of_text_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        decode_text(b"abc", name or " ")

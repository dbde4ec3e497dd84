"""Surprise by hand, whole characters, and pages that no text can break out of."""

import html
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from llamactl.escape import escape_control_chars
from llamactl.inference.evaluate import evaluate_streams, token_stream
from llamactl.inference.surprisal import Piece, bits_per_byte, measure_surprisal
from llamactl.inference.surprisal_page import render_page
from llamactl.model.llama import Llama
from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import Tokenizer
from tests.inference.test_evaluate import model

RAW = bpe.byte_tokenizer()

# What tries to leave its element, to steer a terminal, to turn a line around, or to be taken for markup.
PAYLOADS = [
    "</p><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' style='x", "&lt;b&gt;",
    "]]>", "-->",
    "<!--", "</style>", "</title><script>", "javascript:alert(1)", "&#x3c;script&#x3e;", "\x1b[2J", "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\x1b[31mred",
    "\x9b2J", "\x90q", "\x07", "\b\b\b", "\rover", "\x7f", "\x00",
    "\u202eevil", "\u2066x\u2069", "\u2028", "\u200b", "\ufeff", "\U000e0041",
    "[bold]x[/bold]", "[link=http://evil]x[/link]", "[/]",
    "%s%n", "{0}", "${x}", "`id`", "\\x41", "<svg/onload=alert(1)>", "\x1bP+q\x1b\\", "\x1b_x\x1b\\",
]  # fmt: skip


def test_it_is_the_negative_logarithm_of_the_probability() -> None:
    made, text = model(257), "The people"
    ids = [RAW.end, *RAW.encode(text).tolist()]
    logs = made(torch.tensor([ids[:-1]]))[0, :, :257].log_softmax(-1)
    pieces = measure_surprisal(made, RAW, text)
    assert "".join(piece.text for piece in pieces) == text
    for place, piece in enumerate(pieces):
        assert piece.nats == pytest.approx(-logs[place, ids[place + 1]].item(), abs=1e-5)
        chances = [chance for _, chance in piece.expected]
        assert chances == sorted(chances, reverse=True)
        assert len(chances) == 5
        assert chances[0] == pytest.approx(logs[place].max().exp().item(), abs=1e-6)


def test_a_long_text_always_has_half_a_context_before_it() -> None:
    made = model(257, context=32)
    text = "We hold these truths to be self-evident, that all men are created equal, that they are endowed"
    pieces = measure_surprisal(made, RAW, text)
    assert "".join(piece.text for piece in pieces) == text
    ids = [RAW.end, *RAW.encode(text).tolist()]
    place = 70  # windows end at 32, 49, 66, 83; its own began half a context before 67
    logs = made(torch.tensor([ids[51:place]]))[0, -1, :257].log_softmax(-1)
    assert pieces[place - 1].nats == pytest.approx(-logs[ids[place]].item(), abs=1e-4)


def test_half_characters_are_shown_whole() -> None:
    text = "a€b – 日本 🎉"
    pieces = measure_surprisal(model(257), RAW, text)
    assert [piece.text for piece in pieces] == list(text)
    assert bits_per_byte(pieces) == pytest.approx(sum(piece.nats for piece in pieces) / math.log(2) / len(text.encode()))


WRITTEN = [
    "I am happy 😀", "😀", "👨‍👩‍👧 a family", "cafe\u0301 nai\u0308ve", "\u0301 alone", "नमस्ते दुनिया",
    "日本語、韓국어", "🇫🇷🇩🇪 flags", "a😀b🤖c",
    "x\u2028y\x85z", "𝔘𝔫𝔦", "\U0010ffff\ufffd", "plain", "tab\tand\r\nline",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bytes", "bpe", "gpt2"])
def cut(request: pytest.FixtureRequest, documents: list[str]) -> tuple[Llama, Tokenizer]:
    """A tokenizer, and a model with a context that holds every text of WRITTEN whole."""
    named = {"bytes": bpe.byte_tokenizer, "gpt2": bpe.gpt2_tokenizer}
    tokenizer = named[request.param]() if request.param in named else bpe.train_bpe(iter(documents), 400)
    return model(tokenizer.vocab_size, context=64), tokenizer


@pytest.mark.parametrize("text", WRITTEN)
def test_bytes_are_counted_from_bytes(cut: tuple[Llama, Tokenizer], text: str) -> None:
    """`measure_surprisal` groups the tokens of a character, of however many bytes; nothing is replaced."""
    made, tokenizer = cut
    pieces = measure_surprisal(made, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text for piece in pieces)
    ids = [tokenizer.end, *tokenizer.encode(text).tolist()]
    logs = made(torch.tensor([ids[:-1]]))[0, :, : tokenizer.vocab_size].log_softmax(-1)
    bits = -logs.gather(1, torch.tensor(ids[1:])[:, None]).sum().item() / math.log(2)
    assert sum(piece.bits for piece in pieces) == pytest.approx(bits, rel=1e-5)
    assert bits_per_byte(pieces) == pytest.approx(bits / len(text.encode()), rel=1e-5)
    whole = evaluate_streams(made, tokenizer, (token_stream(tokenizer, [text]),), rests=True)
    assert bits_per_byte(pieces) == pytest.approx(whole.bits_per_byte, rel=1e-5)
    assert whole.bytes == len(text.encode())
    shown = render_page("t", pieces)
    assert f"{bits_per_byte(pieces):.3f} bits per byte" in shown
    for character in set(text) - set(" \t\r\n\u2028\x85\U0010ffff"):
        assert html.escape(escape_control_chars(character)) in shown
    assert ("\ufffd" in shown) == ("\ufffd" in text)


class Elements(HTMLParser):
    """The tags and texts of a page, as a browser takes it apart."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_breaks_out_of_the_page(payload: str) -> None:
    pieces = [Piece(payload, 3.0, ((payload, 0.5),)), Piece("\n", 20.0, (("(end)", 0.1),))]
    for made in (render_page(payload, pieces), render_page("now", pieces, pieces)):
        found = Elements()
        found.feed(made)
        assert set(found.tags) <= {"html", "meta", "title", "style", "h1", "p", "i", "span"}
        assert found.tags.count("span") == 2
        assert found.attributes <= {"lang", "charset", "name", "content", "class", "style", "data-tip"}
        assert escape_control_chars(payload) in found.text
        assert not set(html.unescape(made)) & {"\x1b", "\x9b", "\x00", "\x07", "\u202e", "\u2066"}


def test_a_page_needs_nothing_else() -> None:
    made = render_page("a", [Piece("x", 1.0, (("y", 0.5),))])
    assert not re.search(r"(src|href)=|url\(|@import|https?:", made)
    assert len(made) < 6_000


def test_colours_say_how_much_and_which_way() -> None:
    calm, loud = Piece("a", 0.0, ()), Piece("b", 20.0, ())
    assert "213 94 0 / 0.00" in render_page("t", [calm])
    assert "213 94 0 / 0.75" in render_page("t", [loud])
    assert "0 114 178 / 0.55" in render_page("t", [calm], [loud])
    assert "213 94 0 / 0.55" in render_page("t", [loud], [calm])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_a_browser_shows_the_page_and_runs_nothing(tmp_path: Path) -> None:
    """As Chromium takes it apart: every payload is text, and no script of one has run."""
    pieces = [Piece(payload, 3.0, ((payload, 0.5),)) for payload in PAYLOADS]
    (tmp_path / "page.html").write_text(render_page("payloads", pieces))
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout
    found = Elements()
    found.feed(shown)
    assert found.tags.count("span") == len(PAYLOADS)
    assert not set(found.tags) & {"script", "img", "svg"}
    for payload in PAYLOADS:
        assert escape_control_chars(payload).strip() in found.text

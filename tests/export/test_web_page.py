"""The page of a model in headless Chromium without a network: it computes what PyTorch does, and shows text only as text."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset import Dataset
from llamactl.export import web
from llamactl.export.web_weights import Kind
from llamactl.inference.surprisal import bits_per_byte, measure_surprisal
from llamactl.tokenizer.bpe import Tokenizer, byte_tokenizer, gpt2_tokenizer
from tests.export.pages import stored_models, write_in_page, write_in_torch
from tests.export.test_web import PAYLOADS, SHAPE, save_run
from tests.serving.browser import CHROMIUM, OFFLINE, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
READY = "typeof vocabulary !== 'undefined' && vocabulary !== null && job === null"
TOKENS = "document.querySelectorAll('#written [role=button]')"

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {}, "tied": {"tie_embeddings": True}, "one key/value head": {"n_kv_heads": 1}, "no groups": {"n_kv_heads": 4},
    "qwen3": {"qk_norm": True}, "qwen2": {"qkv_bias": True}, "linear": {"rope_scaling": 4.0}, "eps": {"norm_eps": 0.01},
    "llama3": {"rope_scaling": 4.0, "rope_original_context": 16, "rope_theta": 500.0}, "one layer": {"n_layers": 1},
    "odd widths": {"dim": 37, "ffn_dim": 53, "head_dim": 6}, "short context": {"context": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser that reaches no network."""
    with Page("data:text/html,", tmp_path_factory.mktemp("profile"), flags=OFFLINE) as page:
        yield page


def opened(browser: Page, file: Path) -> tuple[dict[str, Any], list[bytes]]:
    """Open a page and wait until it has written once; returns what is in it."""
    browser.go(file.resolve().as_uri())
    browser.wait(READY)
    return web.read_page(file.read_text("utf-8"))


def exported(tokenizer: Tokenizer, tmp_path: Path, config: ModelConfig = SHAPE, kind: Kind = "int8", steps: int = 1) -> Path:
    return web.export_web(save_run(tokenizer, config, steps, f"mine{steps}").checkpoint(steps), tmp_path / "out", kind, steps)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_greedy_tokens_are_those_of_pytorch(change: dict[str, Any], dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    config = SHAPE.model_copy(update=change)
    about, blobs = opened(browser, exported(dataset.tokenizer, tmp_path, config))
    count = 1_000 if not change else 150
    found, _ = write_in_page(browser, [about["end"], 5, 6], count)
    config = config.model_copy(update={"vocab_size": about["ids"]})
    assert found == write_in_torch(stored_models(about, blobs)[0], config, [about["end"], 5, 6], count)


def test_int4_and_earlier_checkpoints_too(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    config = SHAPE.model_copy(update={"vocab_size": dataset.tokenizer.vocab_size})
    for kind, steps in (("int4", 1), ("int8", 4)):
        about, blobs = opened(browser, exported(dataset.tokenizer, tmp_path / kind, kind=kind, steps=steps))  # type: ignore[arg-type]
        for number, model in enumerate(stored_models(about, blobs)):
            found, _ = write_in_page(browser, [about["end"]], 100, number)
            assert found == write_in_torch(model, config, [about["end"]], 100)


ALPHABET = [
    "a", "b", "the", " ", "  ", "\n", "\r", "\t", "\u00a0", "\u0085", "\ufeff", "\u2003", "\u200b", "'s", "'LL", "'", "1",
    "23", "\u0664", "\u00bd", "\u00e9", "e\u0301", "\u4e2d\u6587", "\u3042", "\ud55c", "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u05d0", "\u0628", "_", "-", "...", "<|endoftext|>", "<|", "\x00",
    "\x7f", "\u0130", "\u1e9e", "\U00010400", "\u20ac", ",", "(", "http://x", "\u0e01\u0e33",
]  # fmt: skip


@pytest.mark.parametrize("name", ["bpe", "bytes", "gpt2"])
def test_text_has_the_ids_of_python(name: str, dataset: Dataset, documents: list[str], browser: Page, tmp_path: Path) -> None:
    tokenizer = {"bpe": lambda: dataset.tokenizer, "bytes": byte_tokenizer, "gpt2": gpt2_tokenizer}[name]()
    config = SHAPE.model_copy(update={"vocab_size": tokenizer.vocab_size, "dim": 8, "n_layers": 1})
    opened(browser, exported(tokenizer, tmp_path, config))
    draw = random.Random(0)
    texts = ["".join(draw.choices(ALPHABET, k=draw.randrange(12))) for _ in range(600)]
    texts += [
        "".join(chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(8))
        for _ in range(100)
    ]
    texts += [*documents[:8], "a" * 5_000, " " * 3_000, "\u4e2d" * 2_000]
    found = browser.run(f"{json.dumps(texts)}.map((text) => vocabulary.encode(text))")
    for text, ids in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text).tolist(), repr(text)


def test_a_text_is_read_as_python_reads_it(dataset: Dataset, documents: list[str], browser: Page, tmp_path: Path) -> None:
    about, blobs = opened(browser, exported(dataset.tokenizer, tmp_path))
    text = documents[3][:900] + "\U0001f600 \u4e2d"
    browser.run(f"show('read'); at('passage').value = {json.dumps(text)}; read(); 0")
    browser.wait(READY)
    model = stored_models(about, blobs)[0].to_model(SHAPE)
    pieces = measure_surprisal(model, dataset.tokenizer, text)
    assert browser.run("sheets.read.text") == text
    assert (
        abs(browser.run("sheets.read.tokens.reduce((sum, token) => sum + token.nats, 0)") - sum(piece.nats for piece in pieces))
        < 0.01
    )
    said = browser.run("at('read-status').textContent")
    assert said.startswith(f"{bits_per_byte(pieces):.3f} bits per byte over ")


def test_it_branches_by_keyboard(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path))
    browser.run("at('count').value = 60; at('temperature').value = 0; at('prompt').value = 'The people'; write(true)")
    browser.wait(f"{TOKENS}.length === 60 && {READY}")
    assert browser.run(f"[...{TOKENS}].filter((token) => token.tabIndex === 0).length") == 1
    before = browser.run("sheets.write.tokens.slice(0, 3).map((token) => token.id)")
    browser.run(f"{TOKENS}[0].focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Enter"):
        browser.press(key)
    assert browser.run("document.querySelectorAll('#choices button').length") == 5
    chosen = browser.run("sheets.write.tokens[3].others[2][0]")
    for key in ("ArrowDown", "Enter"):
        browser.press(key)
    browser.wait(READY)
    tokens = browser.run("sheets.write.tokens.map((token) => token.id)")
    assert tokens[:3] == before
    assert tokens[3] == chosen
    assert browser.run("at('choices').hidden")
    assert browser.run("document.activeElement === document.querySelectorAll('#written [role=button]')[3]")
    browser.press("Enter")
    browser.press("Escape")
    assert browser.run("at('choices').hidden && document.activeElement.closest('#written') !== null")
    assert browser.run("at('spoken').textContent").startswith("It wrote: ")


def test_a_pointer_shows_the_alternatives_and_takes_no_focus(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path))
    over = "new PointerEvent('pointerover', { bubbles: true, pointerType: 'mouse' })"
    browser.run(f"{TOKENS}[4].dispatchEvent({over}); 0")
    browser.wait("document.querySelectorAll('#choices button').length === 5")
    assert browser.run("at('choices').textContent").startswith(
        browser.run(f"{TOKENS}[4].getAttribute('aria-label').split(': ').at(-1)")
    )
    assert not browser.run("at('choices').contains(document.activeElement)")
    browser.run(f"{TOKENS}[4].dispatchEvent(new PointerEvent('pointerout', {{ bubbles: true }})); 0")
    browser.wait("at('choices').hidden")


def test_the_same_seed_writes_the_same_and_another_does_not(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path))
    texts = []
    for seed in (1, 1, 2):
        browser.run(f"at('seed').value = {seed}; write(); 0")
        browser.wait(READY)
        texts.append(browser.run("sheets.write.text"))
    assert texts[0] == texts[1] != texts[2]


def test_the_slider_writes_with_other_checkpoints(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path, steps=5))
    assert browser.run("[at('moment').max, at('moment').value]") == ["4", "4"]
    shown = set()
    for moment in range(5):
        browser.run(f"at('moment').value = {moment}; at('moment').dispatchEvent(new Event('input')); 0")
        browser.wait(READY)
        assert browser.run("at('moment-shown').textContent").startswith(f"step {moment + 1} of 5 · ")
        shown.add(browser.run("sheets.write.text"))
    assert len(shown) > 1
    # Faster than it can follow: the last one counts.
    browser.run(
        "for (const n of [4, 0, 3, 1, 2]) { at('moment').value = n; at('moment').dispatchEvent(new Event('input')); } 0"
    )
    browser.wait(READY)
    last = browser.run("sheets.write.text")
    browser.run("write(); 0")
    browser.wait(READY)
    assert browser.run("sheets.write.text") == last


def test_the_run_is_played_from_its_first_checkpoint(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path, steps=2))
    browser.run("at('play').click()")
    assert browser.run("[at('moment').value, at('play').textContent]") == ["0", "Pause"]
    browser.wait("at('play').textContent === 'Play'")
    assert browser.run("[at('moment').value, at('play').getAttribute('aria-pressed')]") == ["1", "false"]


def test_it_writes_while_one_types(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path))
    browser.run("at('prompt').value = 'Our union'; at('prompt').dispatchEvent(new Event('input')); 0")
    browser.wait(f"document.querySelector('#written .given').textContent === 'Our union' && {TOKENS}.length > 5 && {READY}")
    assert browser.run("at('spoken').textContent") == ""  # nobody asked: a screen reader is not interrupted


def test_nothing_becomes_markup(dataset: Dataset, browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(dataset.tokenizer)
    elements = "[...document.querySelectorAll('*')].map((each) => each.tagName).filter((name) => name !== 'SPAN').length"
    opened(browser, web.export_web(run.checkpoint(1), tmp_path / "out"))
    plain = browser.run(elements)
    assert len(PAYLOADS) >= 40
    for payload in PAYLOADS:
        monkeypatch.setattr(web, "describe_model", lambda *_, payload=payload: f"{payload} at step 1")
        monkeypatch.setattr(web, "PROMPT", payload)
        about, _ = opened(browser, web.export_web(run.checkpoint(1), tmp_path / "out"))
        assert browser.run("document.querySelector('#facts dd').textContent") == about["name"]
        assert browser.run("document.querySelector('#written .given').textContent") == about["prompt"]
        script = f"at('passage').value = at('prompt').value = {json.dumps(payload)}; show('read'); read(); 0"
        browser.run(script)
        browser.wait(READY)
        browser.run("if (sheets.read.tokens.length) choices.show(sheets.read, 0, true)")
        browser.run("choices.close(); at('choices').replaceChildren()")
        assert browser.run(elements) == plain, payload
        assert browser.run("sheets.read.text") == payload.replace("\r", "\n")
        assert browser.run("location.protocol") == "file:"


def test_it_asks_for_nothing_and_works_without_a_worker(dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    file = exported(dataset.tokenizer, tmp_path)
    opened(browser, file)
    names = browser.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(("blob:", "data:")) for name in names)
    refused = browser.run("fetch('https://example.com/').then(() => false, () => true)")
    assert refused
    ids = browser.run("sheets.write.tokens.map((token) => token.id)")
    page = file.read_text("utf-8").replace("worker-src blob:", "worker-src 'none'")
    file.with_name("alone.html").write_text(page)
    opened(browser, file.with_name("alone.html"))
    assert browser.run("sheets.write.tokens.map((token) => token.id)") == ids


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_it_fits(width: int, dataset: Dataset, browser: Page, tmp_path: Path) -> None:
    opened(browser, exported(dataset.tokenizer, tmp_path, steps=2))
    browser.resize(width, 800)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.resize(1280, 800)

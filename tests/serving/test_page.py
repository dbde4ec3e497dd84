"""The page in headless Chromium: it writes, shows probabilities, branches, and is used by mouse, keyboard and on a phone."""

from pathlib import Path
from urllib.parse import quote

import pytest

from llamactl.runs.run_dir import RunDir
from tests.serving.browser import CHROMIUM, Page
from tests.serving.conftest import serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
TOKENS = "document.querySelectorAll('#text [role=button]')"
IDLE = "document.getElementById('stop').hidden"


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that never ends a text: the page sends no seed, and half of its texts would be too short."""
    monkeypatch.setattr("llamactl.inference.generate.find_ends", lambda _: frozenset())


def test_it_writes_and_branches_by_keyboard(run: RunDir, tmp_path: Path, endless: None) -> None:
    with serving(run.checkpoint(2)) as address, Page(f"{address}/#The%20people", tmp_path) as page:
        page.wait(f"{TOKENS}.length > 12 && {IDLE}")
        assert page.run("document.querySelector('#text .given').textContent") == "The people"
        assert page.run("document.getElementById('name').textContent") == "served"
        assert page.run(f"[...{TOKENS}].every(token => /^[\\d.e-]+ %$/.test(token.title))")
        before = page.run(f"[...{TOKENS}].slice(0, 10).map(token => token.textContent).join('')")
        page.run(f"{TOKENS}[10].focus()")
        page.press("Enter")
        page.wait("!document.getElementById('choices').hidden")
        assert page.run("document.activeElement.getAttribute('role')") == "menuitem"
        page.press("ArrowDown")
        page.press("Enter")
        page.wait(f"document.getElementById('choices').hidden && {TOKENS}.length > 20 && {IDLE}")
        assert page.run(f"[...{TOKENS}].slice(0, 10).map(token => token.textContent).join('')") == before


def test_the_slider_asks_another_checkpoint(run: RunDir, tmp_path: Path, endless: None) -> None:
    with serving(run.checkpoint(2)) as address, Page(f"{address}/#a", tmp_path) as page:
        page.wait(f"{TOKENS}.length > 5 && {IDLE}")
        page.run("go(); 0")
        page.run(
            "document.getElementById('step').value = 0; document.getElementById('step').dispatchEvent(new Event('input')); 0"
        )
        assert page.run("document.getElementById('shown').textContent") == "1"
        assert page.run("chosenModel()") == "served@1"


def test_parts_of_a_character_become_one(run: RunDir, tmp_path: Path) -> None:
    """It is shown, and sent back, once it is complete."""
    token = "{ name, bytes: [byte], probability: 1, others: [{ name: 'e', bytes: [169], probability: 1 }] }"
    with serving(run.checkpoint(2)) as address, Page(f"{address}/", tmp_path) as page:
        page.wait("document.getElementById('name').textContent === 'served'")
        page.run("let sent = ''; ask = (path, body) => { sent = body.prompt; }; given = 'a'; 0")
        page.run(f"write([['<0xC3>', 195], ['<0xA2>', 162], ['b', 98]].map(([name, byte]) => ({token}))); draw(); 0")
        assert page.run(f"[...{TOKENS}].map(token => token.textContent).join('|')") == "|â|b"
        page.run("branch(1, written[1].others[0]); 0")
        assert page.run("sent") == "aé"
        page.run("branch(1, { name: '<0xC4>', bytes: [196], probability: 1 }); 0")
        assert page.run("sent").startswith("a")
        assert "<0x" not in page.run("sent")


def test_nothing_that_is_written_becomes_markup(run: RunDir, tmp_path: Path) -> None:
    text = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    with serving(run.checkpoint(2)) as address, Page(f"{address}/#{quote(text)}", tmp_path) as page:
        page.wait(f"{TOKENS}.length > 0 && {IDLE}")
        assert page.run("document.querySelector('#text .given').textContent") == text
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.title") == "served"


def test_it_fits_a_phone(run: RunDir, tmp_path: Path) -> None:
    with serving(run.checkpoint(2)) as address, Page(f"{address}/#The%20people", tmp_path, (390, 844)) as page:
        page.wait(f"{TOKENS}.length > 0 && {IDLE}")
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_stranger_is_told_to_show_the_token(run: RunDir, tmp_path: Path) -> None:
    with serving(run.checkpoint(2), token="secret", hosts=()) as address, Page(f"{address}/", tmp_path) as page:
        page.wait("document.getElementById('trouble').textContent.includes('needs its token')")
        page.run(
            "const key = document.getElementById('token'); key.value = 'secret'; key.dispatchEvent(new Event('change')); 0"
        )
        page.wait("document.getElementById('name').textContent === 'served'")


TURNS = "[...document.querySelectorAll('#turns li')]"


def test_a_model_of_conversations_is_talked_to(chat_run: RunDir, tmp_path: Path) -> None:
    with serving(chat_run.checkpoint(3)) as address, Page(f"{address}/", tmp_path, (390, 844)) as page:
        page.wait("document.body.classList.contains('chats')")
        page.run("const box = document.getElementById('prompt'); box.value = '<b>hello</b>'; box.focus(); 0")
        page.press("Enter")
        page.wait(f"{TURNS}.length === 2 && {TURNS}[1].textContent.length > 0 && {IDLE}")
        assert page.run(f"{TURNS}[0].textContent") == "<b>hello</b>"
        assert page.run(f"{TURNS}[1].textContent === turns[1].content")
        page.run("document.getElementById('system').value = 'be kind'; box.value = 'and you?'; 0")
        page.press("Enter")
        page.wait(f"{TURNS}.length === 4 && {IDLE}")
        assert page.run("turns.map(turn => turn.role).join()") == "user,assistant,user,assistant"
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        page.run("document.getElementById('reset').click(); 0")
        assert page.run(f"{TURNS}.length") == 0
        # What does not fit is said, and can be said otherwise.
        page.run("box.value = 'long '.repeat(200); box.focus(); 0")
        page.press("Enter")
        page.wait("document.getElementById('trouble').textContent.includes('too long')")
        assert page.run(f"{TURNS}.length") == 0
        assert page.run("box.value.startsWith('long')")
        page.run("document.getElementById('mode-texts').click(); 0")
        assert not page.run("document.body.classList.contains('chats')")
        assert page.run("getComputedStyle(document.getElementById('turns')).display") == "none"


def test_a_model_of_texts_offers_no_chat(run: RunDir, tmp_path: Path) -> None:
    with serving(run.checkpoint(2)) as address, Page(f"{address}/", tmp_path) as page:
        page.wait("document.getElementById('name').textContent === 'served'")
        assert page.run("document.getElementById('modes').hidden")
        assert page.run("getComputedStyle(document.getElementById('reset')).display") == "none"

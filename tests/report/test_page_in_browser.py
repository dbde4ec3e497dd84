"""Reports in a real browser: curves are drawn, values are read, axes change, and nothing goes wrong."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamactl.report.page import render_report
from tests.inference.test_surprisal import PAYLOADS
from tests.report.test_page import falling, looked, row, subject

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")

# Added to the page before its own script, and after it: what goes wrong is noted, hands are played, and the DOM is described.
EARLY = """<head><script>
window.early = [];
window.onerror = (message) => early.push(String(message));
console.error = (...words) => early.push(words.join(" "));
document.addEventListener("securitypolicyviolation", (event) => early.push(event.violatedDirective));
</script>"""
PROBE = """<script>
const found = { errors: window.early }, q = (query) => document.querySelector(query);
const all = (query) => [...document.querySelectorAll(query)];
const chart = q("#chart svg"), texts = (query) => all(query).map((each) => each.textContent);
const hand = (kind, x, y, target = chart) => {
  const box = chart.getBoundingClientRect();
  const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true, pointerType: "mouse" };
  target.dispatchEvent(new PointerEvent(kind, { ...at, button: 0 }));
};
const now = () => ({ ticks: texts(".x.tick"), label: texts(".label"), y: texts(".y.tick"), curves: all("path.smooth").length });
const points = () => all("path.raw, path.smooth, path.held").map((each) => each.getAttribute("d").split("L").length);
const click = (query) => q(query).click();
const scene = () => {
  found.start = now();
  found.points = points();
  found.key = q("#key").textContent;
  found.pressed = texts("[aria-pressed=true]");
  found.marks = [all(".resumed").length, all(".jump").length, all(".end").length];
  hand("pointermove", 0.5, 0.5);
  found.tip = q("#tip").innerText;
  found.cross = all("#mark .cross").length;
  hand("pointerleave", 0.5, 0.5);
  found.left = q("#tip").hidden;
  for (const axis of ["step", "seconds", "flops"]) {
    click(`[data-x=${axis}]`);
    hand("pointermove", 0.5, 0.5);
    found[axis] = { ...now(), tip: q("#tip").innerText };
  }
  click("[data-y=bits_per_byte]");
  hand("pointermove", 0.5, 0.5);
  found.bits = { ...now(), points: points(), tip: q("#tip").innerText, pressed: texts("[aria-pressed=true]") };
  click("[data-y=loss]");
  click("[data-x=tokens]");
  hand("pointerdown", 0.5, 0.5);
  hand("pointermove", 0.7, 0.5);
  found.pull = all(".pull").length;
  hand("pointerup", 0.7, 0.5, window);
  found.zoomed = { ...now(), button: !q("#whole").hidden };
  chart.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  found.whole = { ...now(), button: !q("#whole").hidden };
  click("#close");
  found.close = { ...now(), pressed: q("#close").getAttribute("aria-pressed") };
  click("#close");
  hand("pointerdown", 0.3, 0.2);
  hand("pointerup", 0.6, 0.7, window);
  found.box = now();
  chart.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  found.keys = { ...now(), tip: q("#tip").innerText };
  const legend = all("#legend button");
  legend[0]?.click();
  found.toggled = { ...now(), pressed: legend[0]?.getAttribute("aria-pressed") };
  legend[1]?.click();
  found.none = now();
  legend.forEach((button) => button.click());
  found.back = now();
  const range = q(".slide input");
  range.value = 0;
  range.dispatchEvent(new Event("input"));
  found.first = texts("li.now span");
  found.moment = q(".slide output").textContent;
  found.wide = document.documentElement.scrollWidth > window.innerWidth;
};
try { scene(); } catch (error) { found.errors.push(String(error.stack)); }
const pre = document.body.appendChild(document.createElement("pre"));
pre.id = "found";
pre.textContent = JSON.stringify(found);
</script></body>"""


def browse(folder: Path, made: str, width: int = 1200) -> Any:
    """What the probe found when Chromium opened the page from a file."""
    (folder / "page.html").write_text(made.replace("<head>", EARLY, 1).replace("</body>", PROBE), "utf-8")
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    words += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom"]
    shown = subprocess.run([*words, f"file://{folder / 'page.html'}"], capture_output=True, text=True, check=True, timeout=120)
    wanted = re.search(r'<pre id="found">(.*?)</pre>', shown.stdout, re.S)
    assert wanted, shown.stderr
    return json.loads(html.unescape(wanted[1]))


def test_two_runs_can_be_explored(home: Path, tmp_path: Path) -> None:
    more = [row("resumed", 50), row("spike", 70, loss=9.0, usual=4.0)]
    samples = ((50, "The", " first"), (100, "The", " last"))
    runs = [
        subject("muon", [*falling(100), *looked(50, 100), *more], samples=samples),
        subject("adamw", [*falling(80, below=1), *looked(20, 40, 80, below=1)], samples=samples),
    ]
    found = browse(tmp_path, render_report(runs))
    assert found["errors"] == []
    assert found["points"] == [100, 100, 2, 80, 80, 3]
    assert found["marks"] == [1, 1, 2]
    assert "each step" in found["key"]
    assert found["start"]["label"] == ["training tokens", "cross-entropy, nats per token"]
    assert found["start"]["ticks"][:3] == ["0", "1k", "2k"]
    assert found["pressed"] == ["tokens", "nats per token", "muon", "adamw"]
    for words in (" tokens", "muon", "adamw", "nats per token", "last validation", "this step", "4.766", "3.832"):
        assert words in found["tip"], words
    assert (found["cross"], found["left"]) == (1, True)
    assert (found["step"]["label"][0], found["step"]["ticks"][1]) == ("optimizer steps", "10")
    assert "step 5" in found["step"]["tip"]
    assert (found["seconds"]["label"][0], found["seconds"]["ticks"][1]) == ("training time", "30s")
    assert "of training" in found["seconds"]["tip"]
    assert (found["flops"]["label"][0], found["flops"]["ticks"][1]) == ("training FLOPs", "5 × 10¹⁰")
    assert "FLOPs" in found["flops"]["tip"]
    assert found["bits"]["label"][1] == "validation, bits per byte"
    assert (found["bits"]["points"], found["bits"]["curves"]) == ([2, 3], 0)
    assert "bits per byte" in found["bits"]["tip"]
    assert found["bits"]["pressed"][:2] == ["FLOPs", "bits per byte"]


def test_hands_zoom_and_hide(home: Path, tmp_path: Path) -> None:
    runs = [subject(name, [*falling(100), *looked(50, 100)], samples=((50, "The", name),)) for name in ("a", "b")]
    found = browse(tmp_path, render_report(runs))
    assert found["errors"] == []
    start, zoomed = found["start"], found["zoomed"]
    assert found["pull"] == 1
    assert zoomed["button"]
    assert zoomed["ticks"] != start["ticks"]
    assert {"5.4k", "5.6k", "6k"} <= set(zoomed["ticks"])
    assert zoomed["y"] != start["y"]
    assert not found["whole"].pop("button")
    assert found["whole"] == start
    assert (found["close"]["pressed"], found["close"]["ticks"]) == ("true", start["ticks"])
    assert float(found["close"]["y"][-1]) < float(start["y"][-1]) - 2
    assert not {*found["box"]["ticks"]} & {"0", "10k"}
    assert found["box"]["y"] != start["y"]
    assert found["keys"]["ticks"] == start["ticks"]
    assert re.match(r"7,[23]\d\d tokens", found["keys"]["tip"])  # one step to the right of where the mouse was last
    assert (found["toggled"]["curves"], found["toggled"]["pressed"]) == (1, "false")
    assert found["none"]["curves"] == 0
    assert found["back"] == start


def test_samples_move_with_the_slider(home: Path, tmp_path: Path) -> None:
    samples = tuple((step, prompt, f"{prompt} {step}") for step in (20, 40) for prompt in ("A", "B"))
    found = browse(tmp_path, render_report([subject("a", falling(50), samples=samples)]), width=500)
    assert found["errors"] == []
    assert (found["first"], found["moment"]) == (["A 20", "B 20"], "step 20")
    assert not found["wide"]


def test_a_thinned_curve_says_so(home: Path, tmp_path: Path) -> None:
    found = browse(
        tmp_path, render_report([subject("a", [*falling(9000), *looked(9000)], samples=((1, "A", "b"), (2, "A", "c")))])
    )
    assert found["errors"] == []
    assert "this step" not in found["tip"]
    assert "neighbouring" in found["key"]
    assert 2000 < found["points"][0] < 4100


def test_payloads_run_nothing(home: Path, tmp_path: Path) -> None:
    samples = tuple((step, payload, payload) for step, payload in enumerate(PAYLOADS, start=1))
    environment = {"command": " ".join(PAYLOADS), "device": PAYLOADS[0]}
    over = {"train": {"prompts": PAYLOADS}}
    runs = [subject(name, falling(50), samples=samples, environment=environment, over=over) for name in ("a", "b")]
    found = browse(tmp_path, render_report(runs))
    assert found["errors"] == []
    assert found["points"] == [50, 50, 50, 50]

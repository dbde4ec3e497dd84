"""Reports: what they say, how large they are, and that nothing breaks out of them."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamactl.cli.watch import planned_course
from llamactl.config.schema import build_config
from llamactl.errors import DataError
from llamactl.escape import embed_json, escape_control_chars
from llamactl.planning.memory_estimate import MemoryEstimate
from llamactl.report.page import LARGEST, render_report
from llamactl.report.results import compare_with_plan
from llamactl.report.run_data import RunData, read_run_data
from llamactl.report.thinning import keep_extremes, spread_evenly
from llamactl.runs.run_dir import RunDir
from llamactl.runs.scores import ScoredTest, SuiteScores, keep_scores
from llamactl.storage.records import to_json
from tests.cli.test_cli import run as type_command
from tests.inference.test_surprisal import PAYLOADS

CONFIG: dict[str, Any] = {"train": {"tokens": 10_000, "tokens_per_step": 100}, "data": {"name": "d"}}


def row(kind: str, step: int, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "tokens": step * 100, "flops": step * 2.5e9, "seconds": step * 3.0, **more}


def stepped(step: int, loss: float) -> dict[str, Any]:
    return row(
        "step", step, loss=loss, lr=1e-3, grad_norm=1.0, tokens_per_second=2000.0 + step, mfu=0.4, memory=5 * 10**8 + step
    )


def falling(steps: int, below: float = 0.0) -> list[dict[str, Any]]:
    noise = random.Random(0)
    return [stepped(n, 4 + 5 / math.sqrt(n) + noise.gauss(0, 0.1) - below) for n in range(1, steps + 1)]


def looked(*steps: int, below: float = 0.0) -> list[dict[str, Any]]:
    made = [row("validation", n, loss=4.2 + 4 / math.sqrt(n) - below, bits_per_byte=1.5 + 1 / math.sqrt(n)) for n in steps]
    return made


def write(
    name: str,
    rows: list[dict[str, Any]],
    samples: tuple[tuple[int, str, str], ...] = (),
    over: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> RunDir:
    run = RunDir.from_name(name)
    run.start(build_config([CONFIG, over or {}]), environment or {"command": "llamactl train", "device": "x86_64"})
    run.metrics_path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    said = (row("sample", step, prompt=prompt, text=text) for step, prompt, text in samples)
    run.samples_path.write_text("".join(json.dumps(each) + "\n" for each in said))
    return run


def subject(name: str, rows: list[dict[str, Any]], **more: Any) -> RunData:
    return read_run_data(write(name, rows, **more), 2_360_000)


class Elements(HTMLParser):
    """The tags, attributes and texts of a page; those of the page's own style and script are kept apart."""

    def __init__(self, made: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.code: list[str] = []
        self.feed(made)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("style", "script") and data.strip():
            self.code.append(data)
        else:
            self.text += data

    @property
    def data(self) -> list[dict[str, Any]]:
        return list(json.loads(self.code[1]))


def test_a_page_needs_nothing_else(home: Path) -> None:
    made = render_report([subject("a", [*falling(100), *looked(50, 100)], samples=((50, "The", " people"),))])
    assert not re.search(r"""\b(src|href|action|srcset)\s*=|url\((?!#)|@import|\bfetch\(|XMLHttp|WebSocket|import\(""", made)
    assert set(re.findall(r"https?://[^\"' ]+", made)) <= {"http://www.w3.org/2000/svg"}  # the name of SVG: nobody goes there
    assert made.index("Content-Security-Policy") < made.index("<style")
    assert "default-src 'none'" in made
    found = Elements(made)
    assert found.tags.count("script") == 2
    assert not set(found.tags) & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for name in found.attributes if name.startswith("on")]


def test_the_figures_are_those_of_the_run(home: Path) -> None:
    text = " ".join(Elements(render_report([subject("a", [*falling(100), *looked(50, 100)])])).text.split())
    for words in ("4.600 nats", "1.600 bits", "2.36M", "10k of 10k", "5m 00s", "2.05k tokens/s", "40%", "500 MB", "stopped"):
        assert words in text, words
    assert "tokens_per_step = 100" in text
    assert '"device": "x86_64"' in text
    assert "settings that differ" not in text


def test_several_runs_stand_beside_each_other(home: Path) -> None:
    better = subject("b", [*falling(80, below=1), *looked(40, 80, below=1)], over={"optim": {"lr": 0.5}})
    made = render_report([subject("a", [*falling(100), *looked(50, 100)]), better])
    found = Elements(made)
    assert [run["name"] for run in found.data] == ["a", "b"]
    assert found.data[0]["colour"] != found.data[1]["colour"]
    rows = {match[0]: match[1] for match in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', made)}
    assert rows["optim.lr"] == '<td class="">0.0</td><td class="">0.5</td>'
    assert not [name for name in rows if "." in name and name != "optim.lr"]
    assert 'class="best">3.647 nats' in rows["validation, per token"]
    assert rows["validation, per token"].count("best") == 1


def test_a_run_that_has_only_begun(home: Path) -> None:
    text = Elements(render_report([subject("a", falling(1))])).text
    assert "–" in text
    assert "What it said" not in text
    with pytest.raises(DataError, match="no losses yet"):
        subject("none", [])


def test_a_damaged_log_is_named(home: Path) -> None:
    run = write("a", falling(3))
    for damage in ("{}\n", '{"kind": "step", "step": 4}\n', '{"kind": "step", "step": 4, "loss": "low"}\n', "\x00\n"):
        run.metrics_path.write_text(damage)
        with pytest.raises(DataError, match=re.escape(str(run.metrics_path))):
            read_run_data(run, 1)
    write("b", falling(3)).plan_path.write_text("[")
    with pytest.raises(DataError, match=re.escape("plan.json")):
        read_run_data(RunDir.from_name("b"), 1)


def test_losses_that_are_none_are_left_out(home: Path) -> None:
    found = Elements(
        render_report([subject("a", [*falling(5), stepped(6, math.nan), *looked(5), row("spike", 4, loss=9.0, usual=4.0)])])
    )
    assert found.data[0]["train"]["step"] == [1, 2, 3, 4, 5]
    assert found.data[0]["spikes"]["loss"] == [9]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_breaks_out_of_the_page(home: Path, payload: str) -> None:
    made = render_report([
        subject(
            name, falling(3), samples=((1, payload, payload), (2, payload, "ok")),
            over={"train": {"prompts": [payload, name]}}, environment={"command": payload, "device": payload, payload: payload},
        )
        for name in ("a", "b")
    ])  # fmt: skip
    plain = Elements(render_report([subject(name, falling(3), samples=((1, "p", "t"), (2, "p", "ok"))) for name in ("c", "d")]))
    found = Elements(made)
    extra = ["tr", "th", "td", "td"]  # the prompts differ
    assert sorted(found.tags) == sorted([*plain.tags, *extra])
    assert found.attributes == plain.attributes
    assert found.text.count(escape_control_chars(payload).strip()) >= 8
    assert not set(made) & {"\x1b", "\x9b", "\x00", "\x07", "\u202e", "\u2066"}


@pytest.mark.parametrize("payload", [*PAYLOADS, "</script>", "\u2029"])
def test_data_for_the_script_stays_data(payload: str) -> None:
    made = embed_json({"name": payload})
    assert not set(made) & set("<>&\u2028\u2029")
    assert json.loads(made) == {"name": payload}


@pytest.mark.slow
def test_a_long_run_fits_and_keeps_its_extremes(home: Path) -> None:
    rows = falling(100_000)
    rows[77_777]["loss"], rows[55_555]["loss"] = 25.0, 0.125
    texts = tuple((step, prompt, "<&'\"> " * 100) for step in range(1, 100_000, 250) for prompt in ("One", "Two", "Three"))
    one = subject("a", [*rows, *looked(*range(1, 100_000, 50))], samples=texts)
    for subjects in ([one], [one] * 24):
        made = render_report(subjects)
        assert 100_000 < len(made.encode()) < LARGEST
        for run in Elements(made).data:
            losses = run["train"]["loss"]
            assert (max(losses), min(losses)) == (25.0, 0.125)
            assert (run["train"]["step"][0], run["train"]["step"][-1]) == (1, 100_000)


def test_thinning_keeps_lows_and_highs_and_ends() -> None:
    values = [float((n * 7919) % 1000) for n in range(1000)]
    kept = keep_extremes(np.array(values), 40).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) <= 42
    assert {0, 999, values.index(0.0), values.index(999.0)} <= set(kept)
    assert keep_extremes(np.array(values), 1000).tolist() == list(range(1000))
    assert spread_evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert (spread_evenly([3], 5), spread_evenly([], 5), spread_evenly([1, 2], 2)) == ([3], [], [1, 2])


def test_the_plan_is_held_against_what_happened(home: Path) -> None:
    run = write("a", [*falling(50), *looked(50)])
    assert "The plan" not in render_report([read_run_data(run, 1)])
    memory = MemoryEstimate(1, 2, 4, 10**6, 10**6, 10**9, 64, 128)
    loss = {"loss": 4.0, "low": 3.5, "high": "</td>", "bits_per_byte": 1.0}
    plans: tuple[tuple[dict[str, Any], float], ...] = (
        ({"duration": {"steps": 300.0, "looking": 1e9}, "memory": vars(memory), "steps": 100, "loss": loss}, memory.total),
        ({"seconds": 300.0, "memory": 10**9, "steps": 100, "loss": 4.0, "loss_low": 3.5, "loss_high": math.nan}, 1e9),
    )
    for plan, bytes_planned in plans:
        run.plan_path.write_text(to_json(plan))
        kept = {each.name: each for each in compare_with_plan(read_run_data(run, 1))}
        assert (kept["time of all steps"].planned, kept["time of all steps"].ratio) == ("5m 00s", 0.5)
        assert kept["memory"].ratio == pytest.approx((5 * 10**8 + 50) / bytes_planned)
        assert kept["validation, nats per token"].planned == "4.000"
        assert "tokens" not in kept
        text = Elements(render_report([read_run_data(run, 1)])).text
        assert "so far: step 50 of 100" in text
        assert "×\u00a00.50" in text
    run.plan_path.write_text('{"memory": {"weights": "many"}, "loss": {}, "steps": true, "seconds": -1}')
    assert [each.name for each in compare_with_plan(read_run_data(run, 1))] == ["steps"]
    # A number may have any length, and the same plan is read by `watch`.
    for digits, seconds in ((400, 0.0), (300, 1e300)):
        large = "9" * digits
        run.plan_path.write_text(
            f'{{"steps": {large}, "tokens": -{large}, "duration": {{"steps": {large}, "start": {large}}}}}'
        )
        assert len(compare_with_plan(read_run_data(run, 1))) == (2 if seconds else 0)
        assert planned_course(run).start == pytest.approx(seconds)


@pytest.mark.slow
def test_the_command_writes_a_page_and_says_where(home: Path) -> None:
    for name in ("a", "b"):
        write(name, [*falling(20), *looked(10, 20)], over={"model": {"vocab_size": 512}})
    done = type_command("report")
    assert Path(done.stdout.strip()) == RunDir.from_name("b").path / "report.html"
    assert "Next: " in done.stderr
    out = home / "pages" / "two.html"
    assert type_command("report a b a --out", str(out)).stdout.strip() == str(out)
    assert [run["name"] for run in Elements(out.read_text()).data] == ["a", "b"]
    assert "no run" in type_command("report c", code=3).stderr


def scores(step: int, accuracy: float, digest: str = "d", data: str = "d, val", name: str = "cloze") -> SuiteScores:
    test = ScoredTest(name=name, items=200, accuracy=accuracy, error=0.03, chance=0.2, bigram=0.55)
    return SuiteScores(step=step, data=data, digest=digest, tests=(test,))


def scored(name: str, *found: SuiteScores) -> RunData:
    run = write(name, falling(20))
    for each in found:
        keep_scores(run, each)
    return read_run_data(run, 1)


def test_scores_have_their_error_and_what_guessing_gives(home: Path) -> None:
    assert 'id="scores"' not in render_report([subject("none", falling(20))])
    made = render_report([scored("a", scores(5, 0.25), scores(7, 0.3, digest="other"), scores(9, 0.5))])
    section = made[made.index('<section id="scores">') :].partition("</section>")[0]
    assert "50.0% ± 3.0%" in section
    assert "Step 9." in section
    assert re.findall(r'<b class="(\w+)" style="([^"]*)"', section) == [
        ("fill", "width: 50.00%"), ("earlier", "left: 25.00%"), ("chance", "left: 20.00%"), ("bigram", "left: 55.00%"),
        ("error", "left: 47.00%; width: 6.00%"),
    ]  # fmt: skip
    two = render_report([scored("b", scores(9, 0.5)), subject("unscored", falling(20)), scored("c", scores(9, 1.0))])
    section = two[two.index('<section id="scores">') :].partition("</section>")[0]
    assert re.findall(r"<h4 .*?</i>(.*?)</h4>", section) == ["b", "c"]
    assert "earlier" not in section


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_of_scores_break_out_of_nothing(home: Path, payload: str) -> None:
    made = render_report([scored("a", scores(5, 0.25, data=payload, name=payload[:40]))])
    found, plain = Elements(made), Elements(render_report([scored("b", scores(5, 0.25))]))
    assert (found.tags, found.attributes) == (plain.tags, plain.attributes)
    assert not set(made) & {"\x1b", "\x9b", "\x00", "\x07", "\u202e", "\u2066"}

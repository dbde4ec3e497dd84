"""Nothing that an artifact says steers a terminal or becomes markup of a page.

`Screen.render` (llamactl/cli/ui/console.py) escapes whatever is printed, whoever prints it; `report.page`,
`inference.surprise_page` and `spelling.markdown` do it for pages.
"""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from llamactl.checkpoint.format import State
from llamactl.escape import escape_markdown, escape_toml
from tests.fuzz.table import LAST

Typed = Callable[..., dict[str, Any]]

PAYLOADS = {
    "OSC 52": "\x1b]52;c;eA==\x07", "CSI": "\x1b[2J", "C1": "\x9b2J", "bidi": "\u202e", "DEL": "\x7f", "BEL": "\x07",
    "backspace": "\x08", "carriage return": "\r", "DCS": "\x90", "rich markup": "[link=http://x]", "private use": "\ue000",
}  # fmt: skip
STEERING = set("\x1b\x9b\x90\u202e\x7f\x07\x08\r\ue000")
COMMANDS = (
    "runs list", "runs show a", "runs show a --samples", "runs diff a b", "watch a", "plot-loss a", "verify runs/a",
    "train --resume a --tokens 5632", "sample x --run a --max-new-tokens 2", "eval --run a", "config a", "report a",
    "export hf a", "export web a",
)  # fmt: skip
ALLOWED = {0, 2, 3, 4}


def poison(home: Path, payload: str) -> None:
    """Put a text into every field of a run that may hold one, and seal its checkpoint again."""
    run = home / "runs" / "a"
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({key: f"{value}{payload}" for key, value in environment.items()}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    moment = {name: rows[-1][name] for name in ("step", "tokens", "flops", "seconds")}
    rows += [
        {"kind": "slowed", **moment, "why": f"why {payload}"},
        {"kind": "resumed", **moment, "damaged": [f"damaged {payload}"], "differs": [f"differs {payload}"]},
        {"kind": "saved", **moment, "path": f"path {payload}"},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"kind": "sample", **moment, "prompt": f"prompt {payload}", "text": f"text {payload}"}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (run / "plan.json").write_text(json.dumps({payload: payload, "duration": {"steps": payload}}))
    path = home / LAST / "state.json"
    state = State.model_validate_json(path.read_bytes())
    made = {key: f"{value}{payload}" if isinstance(value, str) else value for key, value in state.environment.items()}
    path.write_text(state.model_copy(update={"environment": made | {"device": payload}}).with_digest().to_text())
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('"California is"', json.dumps(f"California {payload}")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAYLOADS)
def test_no_field_of_an_artifact_steers_a_terminal(kind: str, own: Path, typed: Typed) -> None:
    poison(own, PAYLOADS[kind])
    for command in COMMANDS:
        answer = typed(command)
        assert answer["code"] in ALLOWED, f"{command}: {answer['told']}"
        assert not STEERING & set(answer["told"]), command
        assert "\x1b]8;" not in answer["told"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAYLOADS)
def test_what_is_typed_wrongly_is_said_safely(kind: str, typed: Typed) -> None:
    payload = PAYLOADS[kind]
    for words in (("sample", "x", "--n", payload), ("train", f"--{payload}"), ("runs", "show", payload), (payload,),
                  ("train", "--set", f"optim.lr={payload}"), ("sample", "x", "--run", payload), ("eval", payload)):  # fmt: skip
        answer = typed("", *words)
        assert answer["code"] in (2, 3), answer["told"]
        assert not STEERING & set(answer["told"]), words


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "![x](http://x/y)", "a|b", "`x`", "# big", "x\n\n---\nlicense: mit", "&lt;", "\x1b[2J"],
)
def test_a_model_card_is_no_place_for_markup(name: str, own: Path, typed: Typed) -> None:
    config = own / "runs/a/config.toml"
    config.write_text(config.read_text().replace('name = "d"', f"name = {json.dumps(name)}"))
    environment = json.loads((own / "runs/a/environment.json").read_text()) | {"command": name}
    (own / "runs/a/environment.json").write_text(json.dumps(environment))
    answer = typed("export hf a")
    assert answer["code"] == 0, answer["told"]
    (card,) = (own / "exports").glob("*/README.md")
    text = card.read_text()
    assert "<script" not in text
    assert "](http" not in text
    assert "\nlicense" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| trained on") or line.startswith("| made by")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [3, 3]


def test_markdown_is_text_again_when_it_is_shown() -> None:
    assert escape_markdown("llamactl train --tokens 9") == "llamactl train --tokens 9"
    assert escape_markdown("<b>_x_|y") == "&lt;b&gt;\\_x\\_\\|y"


@pytest.mark.parametrize("kind", PAYLOADS)
def test_toml_is_safe_and_says_the_same(kind: str) -> None:
    written = escape_toml(tomli_w.dumps({"x": f"a{PAYLOADS[kind]}b\n"}))
    assert not STEERING & set(written)
    assert tomllib.loads(written) == {"x": f"a{PAYLOADS[kind]}b\n"}

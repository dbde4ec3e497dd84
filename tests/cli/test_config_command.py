"""llamactl config: every setting with its source, as text, JSON and TOML."""

import json
import tomllib
from pathlib import Path

import pytest

from llamactl.config.schema import build_config, dump_toml, load_toml, parse_assignment, preset_settings, setting_names
from llamactl.runs.run_dir import RunDir
from tests.cli.test_cli import run


def test_the_text_is_toml_that_explains_itself() -> None:
    said = run("config --preset tiny --set optim.lr=1e-3", "--set", 'train.prompts=["é 🦙", "#\\n"]').stdout
    expected = build_config(
        [preset_settings("tiny"), parse_assignment("optim.lr=1e-3"), {"train": {"prompts": ("é 🦙", "#\n")}}]
    )
    assert build_config([tomllib.loads(said)]) == expected
    assert "\nlr = 0.001  # --set; default 0.0\n" in said
    assert "\nbeta2 = 0.99  # preset tiny; default 0.95\n" in said
    assert "\nmomentum = 0.95  # default\n" in said
    assert "\nmicro_batch = 0  # worked out before step 0\n" in said
    assert "#   blocks, one after another (a whole number, at least 1, at most 1000)" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("columns", ["80", "100", "200"])
def test_explanations_fit(columns: str) -> None:
    lines = run("config", COLUMNS=columns).stdout.splitlines()
    assert max(map(len, lines)) <= min(int(columns), 100)


def test_a_file_stands_between_the_preset_and_what_is_typed(home: Path) -> None:
    file = home / "mine.toml"
    file.write_text('preset = "tiny"\n[optim]\nlr = 1.0\nbeta1 = 0.5\n')
    words = ["--config", str(file), "--set", "optim.lr=2.0"]
    rows = {row["name"]: row for row in map(json.loads, run("config --json --section optim", *words).stdout.splitlines())}
    assert {name: rows[f"optim.{name}"]["source"] for name in ("lr", "beta1", "beta2", "eps")} == {
        "lr": "--set",
        "beta1": f"file {file}",
        "beta2": "preset tiny",
        "eps": "default",
    }
    assert rows["optim.lr"]["value"] == 2.0
    assert {name for name in setting_names() if name.startswith("optim.")} == set(rows)
    assert json.loads(run("config --json --section data").stdout.splitlines()[0])["source"] == "worked out before step 0"


@pytest.mark.parametrize("section", ["", "optim"])
def test_the_toml_is_what_train_takes(home: Path, section: str) -> None:
    words = ["--section", section] if section else []
    (home / "mine.toml").write_text(run("config --preset notebook --set optim.lr=0.5 --toml", *words).stdout, "utf-8")
    read = load_toml(home / "mine.toml")
    wanted = build_config([preset_settings("notebook"), parse_assignment("optim.lr=0.5")])
    assert build_config([preset_settings("notebook"), read]) == wanted
    assert ("model" in read) == (not section)


def test_a_run_is_held_against_its_preset(home: Path) -> None:
    folder = RunDir(home / "runs" / "a")
    folder.path.mkdir(parents=True)
    made = build_config([preset_settings("tiny"), {"optim": {"lr": 0.5}, "train": {"micro_batch": 8}}])
    folder.config_path.write_text(dump_toml(made), "utf-8")
    said = run("config a").stdout
    assert "\nlr = 0.5  # the run's config; default 0.0\n" in said
    assert "\nbeta2 = 0.99  # preset tiny; default 0.95\n" in said
    assert build_config([tomllib.loads(said)]) == made
    assert build_config([tomllib.loads(run("config a --toml --set optim.lr=2.0").stdout)]).optim.lr == 2.0


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("config --preset tinny", 2, "tiny"),
        ("config --set optim.lrr=1", 2, "optim.lr"),
        ("config --json --toml", 2, "exclude"),
        ("config a --preset tiny", 2, "out"),
        ("config nosuch", 3, "There is no run"),
        ("config --config nosuch.toml", 2, "nosuch.toml"),
        ("config --section optimm", 2, "optim"),
    ],
)
def test_mistakes_are_named(command: str, code: int, says: str) -> None:
    done = run(command, code=code)
    assert says in done.stderr
    assert done.stdout == ""

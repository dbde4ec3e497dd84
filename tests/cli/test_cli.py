"""The commands as people type them, each in a process of its own."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llamactl.escape import escape_control_chars
from tests.cli.inline import type_in
from tests.conftest import make_dataset

TINY = "--preset tiny --set model.context=64 --set model.n_layers=1 --set train.tokens_per_step=512 --set train.sample_tokens=4"


def run(command: str, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Type a command; a wrong exit code or a traceback fails the test."""
    line = [sys.executable, "-m", "llamactl", *command.split(), *words]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", **environment}
    done = subprocess.run(line, capture_output=True, text=True, env=surroundings, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def data(home: Path, corpus: Path) -> None:
    make_dataset(home / "data" / "addresses", corpus)


@pytest.mark.slow
def test_text_becomes_a_model_becomes_text(home: Path, corpus: Path) -> None:
    """The four stages; each names the next."""
    done = run("prepare --tokenizer bpe:300 --name mine", str(corpus))
    assert "80 read, 80 written" in done.stderr
    assert "llamactl train" in done.stderr
    done = run(f"train --tokens 4096 --run first {TINY}")
    for words in (
        "parameters",
        "without embeddings",
        "8 steps x 512 tokens",
        "epochs",
        "GB free",
        "smoke test",
        "bits per byte",
    ):
        assert words in done.stderr, words
    assert "llamactl plot-loss" in done.stderr
    done = run("plot-loss")
    assert Path(done.stdout.strip()).read_bytes().startswith(b"\x89PNG")
    assert "llamactl sample" in done.stderr
    done = run("sample --max-new-tokens 5", "The union ")
    assert done.stdout.startswith("The union")
    assert "--raw-prompt" in done.stderr
    rows = [json.loads(line) for line in run("sample --n 3 --json --max-new-tokens 5", "The", "A").stdout.splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, n) for p in ("The", "A") for n in (1, 2, 3)]
    assert run("sample --max-new-tokens 5", "The").stdout == run("sample --max-new-tokens 5 --run first@8", "The").stdout


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_the_machine_and_training_are_measured(home: Path) -> None:
    peak = json.loads(run("bench peak --device cpu --json").stdout)
    assert peak["rates"]["fp32"] > 1e9
    assert peak["bandwidth"] > 1e8
    assert "TFLOP/s" in run("bench peak --device cpu").stderr
    words = f"bench train --device cpu --steps 2 {TINY}"
    found = json.loads(run(f"{words} --json").stdout)
    assert found["step"] * found["tokens_per_second"] == pytest.approx(512)
    assert "tokens/s" in run(words).stderr
    assert not (home / "runs").exists()


@pytest.mark.slow
def test_shares_are_made_then_sealed(home: Path, corpus: Path) -> None:
    words = f"prepare {corpus} --tokenizer bytes --name mine"
    for share in ("1/2", "2/2"):
        assert "--finish" in run(f"{words} --piece {share}").stderr
    assert "is complete" in run(f"{words} --finish").stderr
    assert "was complete already" in run(words).stderr
    assert "files of data/mine read" in run("verify data/mine").stderr
    run(f"{words} --piece 3/2", code=2)
    shard = next((home / "data" / "mine" / "train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in run("verify mine", code=3).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_training_speaks_json(home: Path) -> None:
    done = run(f"train --tokens 1024 --json {TINY}")
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert [kind for kind in kinds if kind not in ("saved", "warning")] == 2 * ["step", "validation", *3 * ["sample"]]
    assert kinds.count("saved") == 2  # when they are on the disk, which training does not wait for
    (folder,) = (home / "runs").iterdir()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"].startswith("llamactl train --tokens 1024")
    assert environment["dataset"]["name"] == "addresses"


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_dry_run_leaves_nothing_behind(home: Path) -> None:
    done = run("train --preset 150m --tokens 256000 --dry-run")
    assert "63 steps x 4,096 tokens = 258,048" in done.stderr
    assert not (home / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_run_is_not_overwritten_and_a_resumed_one_stays_the_same() -> None:
    run(f"train --tokens 512 --run a {TINY}")
    assert "--resume a" in run(f"train --tokens 512 --run a {TINY}", code=2).stderr
    assert "optim.lr" in run("train --resume a --set optim.lr=1", code=2).stderr
    assert "already finished" in run("train --resume a").stderr
    run("train --resume a --set train.keep_last=5")


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_run_learns_from_others(home: Path) -> None:
    for seed in (1, 2):
        run(f"train --tokens 512 --run teacher-{seed} {TINY} --set train.seed={seed}")
    words = f"train --tokens 1024 --run taught {TINY} --teachers"
    done = run(f"{words} teacher-1,teacher-2@1")
    assert "teachers teacher-1@1, teacher-2@1; 90% of what is learned is their mean prediction" in " ".join(done.stderr.split())
    assert 'teachers = [\n    "teacher-1@1",' in (home / "runs" / "taught" / "config.toml").read_text()
    assert "already finished" in run("train --resume taught").stderr
    assert "no run 'nosuch'" in run(f"{words} teacher-1,nosuch", code=3).stderr
    assert "shorter context" in run(f"{words} teacher-1 --name longer --context 128", code=2).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_model_is_continued_at_a_longer_context(home: Path, corpus: Path) -> None:
    run(f"train --tokens 512 --run a {TINY}")
    words = "train --init-from a --context 256 --tokens 1024 --set train.sample_tokens=4"
    done = run(f"{words} --dry-run")
    assert "from a@1, with a fresh optimizer" in done.stderr
    assert "linear:4, so that 256 of them span what 64 do" in done.stderr
    assert "smoke test" not in done.stderr
    assert "linear" not in run(f"{words} --dry-run --rope-scaling none").stderr
    run(words)
    folder = next((home / "runs").glob("*-continued"))
    assert folder.name[:2] == "20"
    tree = json.loads((next((folder / "checkpoints").iterdir()) / "config.json").read_text())
    assert (tree["max_position_embeddings"], tree["rope_parameters"]["factor"]) == (256, 4.0)
    assert "already finished" in run(f"train --resume {folder.name}").stderr
    assert "--preset" in run(f"{words} --preset tiny", code=2).stderr
    assert "model.dim: 192 -> 96" in run(f"{words} --set model.dim=96", code=2).stderr
    run("prepare --tokenizer bpe:300 --name other", str(corpus))
    mend = run(f"{words} --data other", code=3).stderr.splitlines()[-1]
    assert mend.endswith("checkpoints/step-00000001/tokenizer.json")
    run(f"prepare --name mended {mend.partition('SOURCE ')[2]}", str(corpus))
    run(f"{words} --data mended --dry-run")


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("train", 3, "llamactl prepare sample"),
        ("plot-loss", 3, "llamactl train"),
        ("sample hello", 3, "llamactl train"),
        ("sample hello --run ../../etc", 3, "not a model"),
        ("train --preset 150mm", 2, "150m"),
        ("train --tokens many", 2, "256k"),
        ("train --set optim.lrr=1", 2, "optim.lr"),
        ("train --config nosuch.toml", 2, "nosuch.toml"),
        ("train surprise", 2, "--resume"),
        ("train --resume --preset tiny", 2, "--preset"),
        ("train --resume --init-from a", 2, "--init-from"),
        ("train --init-from nosuch", 3, "no run 'nosuch'"),
        ("train --init-from no/such", 3, "RUN@best"),
        ("train --rope-scaling yarn:4", 2, "linear:4"),
        ("train --rope-scaling linear:half", 2, "valid number"),
        ("train --context 0", 2, "--context"),
        ("prepare nosuch.txt", 3, "nosuch.txt"),
        ("prepare sample --tokenizer gpt9", 2, "bpe:N"),
        ("prepare sample --tokenizer bpe:7", 2, "bpe:8192"),
        ("prepare sample --name a/b", 3, "not a name"),
        ("prepare --workers two", 2, "--help"),
        ("trian", 2, "train"),
    ],
)
def test_mistakes_are_answered_in_three_lines(command: str, code: int, says: str) -> None:
    answer = type_in(*shlex.split(command))
    assert answer.code == code
    assert says in answer.err
    if answer.err.startswith("✗"):
        assert len(answer.err.strip().splitlines()) <= 3
    assert answer.out == ""


def test_a_machine_without_a_network_is_told_both_ways_out() -> None:
    done = run("prepare", code=5, HF_ENDPOINT="http://127.0.0.1:1", HF_HOME=os.environ["LLAMACTL_HOME"])
    assert len(done.stderr.strip().splitlines()) == 3
    assert "llamactl prepare sample" in done.stderr
    assert "llamactl prepare FILES" in done.stderr


def test_a_bug_is_called_one_and_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from llamactl import cli

    def broken(prog_name: str, standalone_mode: bool) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.delenv("LLAMACTL_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "A bug in llamactl: RuntimeError: inside" in capsys.readouterr().err
    monkeypatch.setenv("LLAMACTL_DEBUG", "1")
    with pytest.raises(SystemExit):
        cli.main()
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "prepare", "train", "plot-loss", "sample", "quickstart"])
def test_help_fits_and_has_an_example(command: str) -> None:
    text = run(f"{command} --help").stdout
    assert all(len(line) <= 100 for line in text.splitlines())
    assert ("Example: llamactl" in text) == bool(command)


def test_the_version_is_the_packages() -> None:
    from llamactl import __version__

    assert run("--version").stdout.strip() == f"llamactl {__version__}"


@pytest.mark.parametrize(
    "payload",
    [
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x1b]52;c;aGk=\x07",
        "\x9b31m",
        "a\rb",
        "\x08\x08",
        "\u202eabc",
        "\u2066x\u2069",
        "\ue000",
        "\x00",
    ],
)
def test_nothing_printed_can_steer_a_terminal(payload: str) -> None:
    shown = escape_control_chars(f"a{payload}b")
    assert shown.isprintable()
    assert shown != f"a{payload}b"
    assert escape_control_chars("naïve 日本語 🦙\n\ttab") == "naïve 日本語 🦙\n\ttab"


@pytest.mark.usefixtures("data")
@pytest.mark.slow
def test_runs_are_listed_shown_verified_and_removed(home: Path) -> None:
    run(f"train --tokens 1024 --run first {TINY}")
    listed = run("runs list").stdout.splitlines()
    assert listed[0].split()[:3] == ["run", "state", "data"]
    assert listed[1].split()[:4] == ["first", "done", "addresses", "2/2"]
    (row,) = [json.loads(line) for line in run("runs list --json").stdout.splitlines()]
    assert (row["name"], row["step"], row["checkpoints"]) == ("first", 2, [1, 2])
    shown = run("runs show").stderr
    assert "llamactl train --tokens 1024" in shown
    assert "1, 2" in shown
    assert json.loads(run("runs show first --json").stdout)["environment"]["threads"] == 1
    verdicts = [json.loads(line) for line in run("verify first --json").stdout.splitlines()]
    assert len(verdicts) == 5 + 2 * 7
    assert not [verdict for verdict in verdicts if verdict["damage"]]
    weights = home / "runs" / "first" / "checkpoints" / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert str(weights) in run("verify runs/first", code=3).stderr
    assert "used" in run("train --resume first").stderr
    run("verify first")
    assert "--yes" in run("runs remove first", code=2).stderr
    run("runs remove first --yes")
    assert "There is no run yet" in run("runs list").stderr

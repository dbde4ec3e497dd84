"""What looks like a secret is written nowhere: hidden where a command line is recorded, and where an older one is read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamactl.config.schema import build_config
from llamactl.redact import redact_text, redact_words
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import describe_disclosure
from llamactl.training import provenance

SECRETS = {
    "Hugging Face": ["hf_AbCdEfGhIjKlMnOp"],
    "OpenAI": ["--set", "x=sk-proj-0123456789abcdef"],
    "AWS": ["AKIAIOSFODNN7EXAMPLE"],
    "GitHub": ["ghp_0123456789abcdefABCDEF0123456789abcd"],
    "wandb": ["0123456789abcdef0123456789abcdef01234567"],
    "a password in a URL": ["https://me:0123secret@host/path"],
    "an option": ["--token", "0123secret"],
    "an option with =": ["--api-key=0123 secret"],
    "a variable": ["WANDB_API_KEY=0123secret"],
    "a variable in a setting": ["--set", "train.init_from=x PASSWORD=0123secret"],
    "a query": ["https://host/?access_token=0123secret&x=1"],
    "a header": ["Authorization: Bearer 0123secret0123"],
    "a setting": ["--set", "tracker.password=0123secret"],
    "a JSON web token": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abcdefghij"],
}
HARMLESS = [
    "train --tokens 256000 --run first --set optim.lr=1e-3 --set train.tokens_per_step=4096 --set train.sample_tokens=4",
    "prepare hf:org/name:config --tokenizer gpt2 --text-column text --max-tokens 200M",
    f"train --init-from runs/20261125-101010-tiny/checkpoints/step-00000250 --set train.init_sha256={'0a' * 32}",
    "train --track wandb,tensorboard --data author-texts --run secretary --device cuda:1",
]


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_not_written(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = SECRETS[kind]
    written = " ".join(redact_words(words))
    assert "***" in written
    assert not any(part in written for part in ("0123", "AbCd", "IOSFODNN", "eyJ"))
    monkeypatch.setattr(sys, "argv", ["llamactl", "train", *words])
    assert "0123" not in provenance.redacted_command()


@pytest.mark.parametrize("command", HARMLESS)
def test_what_is_no_secret_stays(command: str) -> None:
    assert " ".join(redact_words(command.split())) == command
    assert redact_text(command) == command


def test_a_run_says_what_it_tells_and_older_ones_are_redacted(home: Path) -> None:
    run = RunDir.from_name("a")
    made_with = {"command": "llamactl train --token hf_AbCdEfGhIjKlMnOp", "system": "Linux-6", "dataset": {"name": "diary"}}
    run.start(build_config([{}]), made_with)
    assert run.environment()["command"] == "llamactl train --token ***"
    said = describe_disclosure(run)
    for words in ("command line", "Linux-6", "diary", "weights"):
        assert words in said
    run.environment_path.write_text(json.dumps({"dataset": 3}))
    assert "command line" not in describe_disclosure(run)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_is_that_of_llamactls_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment inside of another project's repository says nothing of that project."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "-C", str(tmp_path), *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    for place in (tmp_path / ".venv" / "lib" / "site-packages", tmp_path):
        package = place / "llamactl" / "training"
        package.mkdir(parents=True)
        monkeypatch.setattr(provenance, "__file__", str(package / "environment.py"))
        assert provenance._commit() == ""
    (tmp_path / "llamactl" / "__init__.py").write_text("")
    subprocess.run(["git", "-C", str(tmp_path), "add", "llamactl/__init__.py"], check=True)
    assert len(provenance._commit()) == 40

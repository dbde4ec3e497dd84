"""Models of the hub, from a stand-in on loopback, in processes of their own (see tests/corpus/test_hub.py)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset import Dataset
from llamactl.model.llama import Llama
from tests.corpus.hub_server import Files, Hub, running
from tests.corpus.test_hub import NOWHERE, environment

SHAPE = ModelConfig(n_layers=1, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=32, vocab_size=512)
NAME = "someone/small-llama"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def files(tmp_path: Path, dataset: Dataset) -> Files:
    """The files of a model's repository, among them some that must not be downloaded."""
    torch.manual_seed(0)
    path, state = tmp_path / "made", State(step=0, tokens=0, seconds=0.0)
    taken = take_snapshot(Llama(SHAPE), [])
    checkpoint_io.save_checkpoint(path, taken, SHAPE, dataset.tokenizer, state)
    kept = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    return {name: (path / name).read_bytes() for name in kept} | {
        "modeling.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
    }


def type_command(words: list[str], endpoint: str, home: Path) -> "subprocess.CompletedProcess[str]":
    command, variables = [sys.executable, "-m", "llamactl", *words], environment(endpoint, home) | {"LLAMACTL_HOME": str(home)}
    return subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True, check=False)


def evaluate(name: str, endpoint: str, home: Path) -> Any:
    (home / "text.txt").write_text("The people of the United States. " * 5)
    done = type_command(["eval", "text.txt", "--run", name, "--json"], endpoint, home)
    return json.loads(done.stdout)["results"] if done.returncode == 0 else (done.returncode, done.stderr)


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_then_needs_no_network(hub: Hub, files: Files, home: Path) -> None:
    commit = hub.add(NAME, files)
    found = evaluate(f"hf:{NAME}", hub.endpoint, home)
    assert found["text.txt"]["loss"] > 1
    downloaded = {request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("GET") and "/resolve/" in request}
    assert downloaded == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    hub.requests.clear()
    assert evaluate(f"hf:{NAME}@{commit}", hub.endpoint, home) == found
    assert not [request for request in hub.requests if "/resolve/" in request and request.startswith("GET")]
    assert evaluate(f"hf:{NAME}", NOWHERE, home) == found


@pytest.mark.slow
def test_of_a_tokenizer_s_model_no_weights_are_downloaded(hub: Hub, files: Files, home: Path) -> None:
    hub.add(NAME, files)
    (home / "text.txt").write_text("The people of the United States.\n\n" * 50)
    done = type_command(["prepare", "text.txt", "--tokenizer", f"hf:{NAME}"], hub.endpoint, home)
    assert done.returncode == 0, done.stderr
    downloaded = {request.rsplit("/", 1)[1] for request in hub.requests if request.startswith("GET") and "/resolve/" in request}
    assert downloaded == {"config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.slow
def test_what_can_not_be_had_is_said(hub: Hub, files: Files, home: Path) -> None:
    hub.add(NAME, files)
    code, said = evaluate("hf:someone/nosuch", hub.endpoint, home)
    assert code == 3
    assert "someone/nosuch is not there, or is private" in said
    code, said = evaluate(f"hf:{NAME}", NOWHERE, home)
    assert code == 5
    assert "can't be reached" in said
    code, said = evaluate("hf:nonsense", hub.endpoint, home)
    assert code == 2
    assert "hf:HuggingFaceTB/SmolLM2-135M" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_file_that_was_damaged_in_the_cache_is_found(hub: Hub, files: Files, home: Path) -> None:
    hub.add(NAME, files)
    evaluate(f"hf:{NAME}", hub.endpoint, home)
    (weights,) = (home / "huggingface").rglob("*.safetensors")
    stored = weights.resolve()
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x00")
    code, said = evaluate(f"hf:{NAME}", hub.endpoint, home)
    assert code == 3
    assert "Its sha256 is not the hub's" in said


@pytest.mark.slow
def test_its_tokenizer_prepares_text_and_its_weights_are_a_start(hub: Hub, files: Files, home: Path, corpus: Path) -> None:
    hub.add(NAME, files)
    words = ["prepare", str(corpus), "--tokenizer", f"hf:{NAME}", "--name", "own"]
    assert type_command(words, hub.endpoint, home).returncode == 0
    settings = ["--tokens", "4k", "--set", "train.tokens_per_step=512", "--yes"]
    done = type_command(["train", "--init-from", f"hf:{NAME}", "--run", "further", *settings], hub.endpoint, home)
    assert done.returncode == 0, done.stderr

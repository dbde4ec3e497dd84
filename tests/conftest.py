"""What many tests stand on: a folder of their own, a real little corpus, a dataset and a config that train in seconds."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamactl.artifacts import Dataset, DatasetDir, Recipe
from llamactl.config import Config, build
from llamactl.corpus.engines import local
from llamactl.corpus.prepare import prepare
from llamactl.corpus.sources import open_source, sample
from llamactl.training.plan import resolve
from llamactl.training.world import World, join

TINY = {
    "model": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_width": 8, "hidden": 64, "context": 32},
    "optim": {"lr": 0.02},
    "train": {"tokens": 5120, "tokens_per_step": 256, "precision": "fp32", "device": "cpu", "sample_tokens": 4},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/ and runs/ of a test are its own."""
    monkeypatch.setenv("LLAMACTL_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """The openings of 80 State of the Union addresses: real English that comes with the package, the same everywhere."""
    pieces = sample().pieces
    paths = [Path(part.location) for piece in pieces for part in piece]
    return [path.read_text("utf-8")[:8_000] for path in paths[::3][:80]]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """The same as a folder of .txt files."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(documents):
        (folder / f"{number:03d}.txt").write_text(text, "utf-8")
    return folder


def make_dataset(folder: Path, corpus: Path, tokenizer: str = "bpe:512", **settings: Any) -> DatasetDir:
    """Prepare a corpus into a folder."""
    source = open_source([str(corpus)])
    usual: dict[str, Any] = {"source": "corpus", "inputs": source.inputs, "tokenizer": tokenizer, "val_fraction": 0.1}
    recipe = Recipe(**usual | settings)
    into = DatasetDir(folder)
    for _ in prepare(source, recipe, into, local(1)):
        pass
    return into


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Dataset:
    """The addresses as tokens of a BPE of 512 ids."""
    return make_dataset(tmp_path_factory.mktemp("data") / "addresses", corpus).open()


@pytest.fixture
def configured(dataset: Dataset) -> Callable[..., tuple[Config, World]]:
    """A resolved config of a model of 36 thousand parameters, with anything laid over it, and its world."""

    def make(**over: Any) -> tuple[Config, World]:
        config = build([TINY, over])
        world = join(config.train)
        return resolve(config, dataset, world), world

    return make


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Tests of training numbers use one thread, so that they are the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def mount() -> Iterator[Callable[[Path, str], Path]]:
    """Make a small disk of a size, such as 2m, at a path, where the system lets us."""
    mounted: list[Path] = []

    def make(path: Path, size: str) -> Path:
        path.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("making a small disk needs root")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)

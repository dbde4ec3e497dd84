"""What many tests stand on: a folder of their own, a real little corpus, a dataset and a config that train in seconds."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported, here and in every process of a test: threads that wait would spin, and starve the other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The native step is compiled once for all processes of the tests, not into the home folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="llamactl-tests-")
    os.environ["XDG_CACHE_HOME"] = CACHE.name

import torch

from llamactl.config.schema import Config, build_config
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.dataset_info import Recipe
from llamactl.corpus.engines import local_engine
from llamactl.corpus.prepare import prepare_dataset
from llamactl.corpus.sources import open_source, sample_source
from llamactl.distributed.context import World, init_device
from llamactl.planning.resolve import resolve_config

TINY = {
    "model": {"n_layers": 2, "dim": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 64, "context": 32},
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
    pieces = sample_source().pieces
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
    for _ in prepare_dataset(source, recipe, into, local_engine(1)):
        pass
    return into


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Dataset:
    """The addresses as tokens of a BPE of 512 ids."""
    return make_dataset(tmp_path_factory.mktemp("data") / "addresses", corpus).open()


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The file of a BPE that is read in no time, where it does not matter which one it is."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.json"
    path.write_text(dataset.tokenizer.description, "utf-8")
    return path


@pytest.fixture
def configured(dataset: Dataset) -> Callable[..., tuple[Config, World]]:
    """A resolved config of a model of 36 thousand parameters, with anything laid over it, and its world."""

    def make(**over: Any) -> tuple[Config, World]:
        config = build_config([TINY, over])
        world = init_device(config.train)
        return resolve_config(config, dataset, world), world

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

"""Loading anything runs no code from it: nothing that could do so is in the source, nor in what is installed from it."""

import ast
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint.format import State
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.documents import read_piece
from llamactl.corpus.sources import open_source
from llamactl.errors import DataError, UserError
from llamactl.runs.run_dir import RunDir
from llamactl.storage.records import read_record
from tests.conftest import make_dataset
from tests.test_layers import MODULES, PACKAGE, name_of

# What runs code that it was given as data, as a module or as a call.
MODULES_THAT_RUN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "code", "runpy"}
CALLS_THAT_RUN = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load", "np.fromfile", "numpy.load",
    "os.system", "os.popen", "importlib.import_module", "read_pickle",
}  # fmt: skip
WORDS_THAT_RUN = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def dangers(source: str) -> Iterator[str]:
    """What in a file could run code from data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ({alias.name.split(".")[0] for alias in node.names} & MODULES_THAT_RUN)
        elif isinstance(node, ast.ImportFrom):
            yield from ({str(node.module).split(".")[0]} & MODULES_THAT_RUN)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            yield from ({name} & CALLS_THAT_RUN)
            yield from (word for word, value in WORDS_THAT_RUN.items() if words.get(word) == str(value))
            if name == "np.load" and words.get("allow_pickle") != "False":
                yield "np.load"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_can_run_what_it_reads(path: Path) -> None:
    # torch.compile is a method of another thing than the builtin, and is called by its whole name.
    assert set(dangers(path.read_text("utf-8"))) == set()


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "import os\nos.system('x')", "np.load(p)", "np.load(p, allow_pickle=True)",
     "torch.load(p)", "eval(x)", "f(trust_remote_code=True)", "subprocess.run(x, shell=True)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(dangers(source))


@pytest.mark.slow
def test_the_wheel_holds_the_same_files_and_no_other_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PACKAGE.parent, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        code = {name: wheel.read(name).decode() for name in names if name.endswith(".py")}
    assert set(code) == {path.relative_to(PACKAGE.parent).as_posix() for path in MODULES}
    assert not [name for name in names if name.endswith((".pth", ".pkl", ".pt", ".bin", ".so", ".sh"))]
    for source in code.values():
        assert list(dangers(source)) == []


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path(self.path), "executed"))


@pytest.fixture
def poison(tmp_path: Path) -> Iterator[bytes]:
    canary = tmp_path / "canary"
    yield pickle.dumps(Canary(canary))
    assert not canary.exists()


def test_pickles_in_the_place_of_our_files_are_refused(home: Path, corpus: Path, poison: bytes) -> None:
    data = make_dataset(home / "data" / "addresses", corpus, tokenizer="bytes")
    shard = data.path / data.info().shards[0].file
    whole = shard.read_bytes()
    with shard.open("wb") as file:
        np.save(file, np.array([Canary(home / "canary")], dtype=object), allow_pickle=True)
    for content in (poison, shard.read_bytes()):
        shard.write_bytes(content)
        with pytest.raises(UserError):
            data.open()
    shard.write_bytes(whole)
    for path in (data.info_path, data.tokenizer_path):
        kept = path.read_bytes()
        path.write_bytes(poison)
        with pytest.raises(UserError):
            data.open()
        path.write_bytes(kept)
    data.open()
    run = RunDir.from_name("a")
    folder = run.checkpoint(1)
    folder.mkdir(parents=True)
    for name in (checkpoint_format.STATE, checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER, "config.json"):
        (folder / name).write_bytes(poison)
    with pytest.raises(UserError):
        checkpoint_format.read_verified_state(folder)
    for path in (run.config_path, run.environment_path, run.metrics_path):
        path.write_bytes(poison + b"\n")
    for reading in (run.config, run.environment, run.rows):
        with pytest.raises(UserError):
            reading()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".npz", ".zip", ".tar", ".ckpt"])
def test_files_of_other_kinds_are_no_sources(suffix: str, tmp_path: Path, poison: bytes) -> None:
    path = tmp_path / f"poison{suffix}"
    path.write_bytes(poison)
    with pytest.raises(UserError):
        list(read_piece(open_source([str(path)]), 0, make_recipe()))


def make_recipe() -> Any:
    from llamactl.corpus.dataset_info import Recipe

    return Recipe(source="x", inputs="x", tokenizer="bytes", val_fraction=0.1)


LEADING_OUT = ["../a", "/etc", "a/b", "..", ".", "", "-rf", "a\0b", "a\\b", "~", ".hidden"]


@pytest.mark.parametrize("name", [name for name in LEADING_OUT if name])
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    for kind in (RunDir, DatasetDir):
        with pytest.raises(UserError, match="is not a name"):
            kind.from_name(name)


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{", '{"step": 1}', '{"kind": "step"}', '{"kind": "step", "step": "x"}', '{"kind": 1, "step": 2}', "null"],
)
def test_rows_that_are_none_are_damage(content: str) -> None:
    run = RunDir.from_name("a")
    run.path.mkdir(parents=True)
    run.metrics_path.write_text(content + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        run.rows()


@pytest.mark.parametrize(
    "change", [{"step": -1}, {"step": "1"}, {"extra": 1}, {"format": 1}, {"seconds": None}, {"files": [1]}, {"tokens": 1.5}]
)
def test_a_state_is_read_strictly(change: dict[str, object], tmp_path: Path) -> None:
    state = State(step=1, tokens=2, seconds=3.0).with_digest().model_dump()
    (tmp_path / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(UserError, match=r"state\.json"):
        read_record(tmp_path / "state.json", State)


@pytest.mark.parametrize(
    "text",
    ["[model]\nwidth = -1", "[model]\nwidth = 'x'", "[nosuch]\na = 1", "[model]\nwith = 3", "x = ", "[train]\ntokens = 0.5"],
)
def test_a_config_is_read_strictly(text: str) -> None:
    run = RunDir.from_name("a")
    run.path.mkdir(parents=True)
    run.config_path.write_text(text)
    with pytest.raises(DataError, match=r"config\.toml is damaged"):
        run.config()

"""A home whose files are damaged, and processes that run commands in it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from llamactl.config.schema import build_config
from llamactl.distributed.context import init_device
from llamactl.metrics.monitor import record_events
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.training.provenance import collect_environment
from llamactl.training.trainer import train_run
from tests.conftest import TINY, make_dataset

WORKERS = 2


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """A home with a dataset and two runs of it, each with two checkpoints."""
    home = tmp_path_factory.mktemp("fuzz") / "home"
    texts = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(documents[:6]):
        (texts / f"{number}.txt").write_text(text[:3_000], "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMACTL_HOME", str(home))
        _build(home, texts)
    return home


def _build(home: Path, texts: Path) -> None:
    dataset = make_dataset(home / "data" / "d", texts, "bpe:300").open()
    few = {"train": {"save_every": 10, "eval_every": 10, "compile": "off"}}
    config = build_config([{"preset": "tiny"}, TINY, few])
    world = init_device(config.train)
    config = resolve_config(config, dataset, world)
    run = RunDir(home / "runs" / "a")
    run.start(config, collect_environment(config, dataset, world))
    run.keep_plan(asdict(make_plan(config, dataset, world, 1e10)))
    for _ in record_events(train_run(config, dataset, run, world, 1e10), run):
        pass
    run.lock_path.write_text("")
    run.loss_path.write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copytree(run.path, run.path.with_name("b"))


class Server:
    """A process that runs commands in forks of itself."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        surroundings = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=root, env=surroundings,
        )  # fmt: skip

    def run(self, home: Path, words: list[str]) -> dict[str, Any]:
        """What came of a command in a home: code, told, seconds, memory."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps({"home": str(home), "words": words, "log": str(home.parent / f"{home.name}.log")}) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def servers() -> Iterator[SimpleQueue[Server]]:
    """As many as work side by side; who takes one puts it back."""
    made = [Server() for _ in range(WORKERS)]
    free: SimpleQueue[Server] = SimpleQueue()
    for server in made:
        free.put(server)
    yield free
    for server in made:
        server.close()


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> Path:
    """A copy of the home, to be damaged."""
    home = tmp_path / "home"
    shutil.copytree(whole, home)
    return home


@pytest.fixture
def typed(servers: SimpleQueue[Server], own: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Type a command in the copy of the home."""
    server = servers.get()
    yield lambda command, *words: server.run(own, [*command.split(), *words])
    servers.put(server)

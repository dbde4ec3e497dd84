"""A small model with a run, and a server of it on loopback."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.cli.serve import LOOPBACK, list_models
from llamactl.config.schema import ModelConfig, OptimConfig, build_config, dump_toml
from llamactl.corpus.dataset import Dataset
from llamactl.model.llama import Llama
from llamactl.optim.build import build_adamw
from llamactl.runs.run_dir import RunDir
from llamactl.serving.app import Server
from llamactl.serving.scheduler import Scheduler
from llamactl.tokenizer.roles import add_roles

SHAPE = ModelConfig(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=64, vocab_size=512)


@pytest.fixture
def run(home: Path, dataset: Dataset) -> RunDir:
    """A run with two checkpoints, of models of random weights."""
    made = RunDir.from_name("served")
    made.path.mkdir(parents=True)
    made.config_path.write_text(dump_toml(build_config([{"model": SHAPE.model_dump()}])))
    for step in (1, 2):
        torch.manual_seed(step)
        model = Llama(SHAPE)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
        taken = take_snapshot(model, build_adamw(model, OptimConfig(lr=0.1)))
        state = State(step=step, tokens=step, seconds=1.0, skipped=step)
        checkpoint_io.save_checkpoint(made.checkpoint(step), taken, SHAPE, dataset.tokenizer, state)
    return made


@pytest.fixture
def chat_run(run: RunDir, dataset: Dataset) -> RunDir:
    """The run whose newest checkpoint was fine-tuned on conversations; random weights are as good."""
    tokenizer = add_roles(dataset.tokenizer)
    torch.manual_seed(3)
    shape = SHAPE.model_copy(update={"vocab_size": 640})
    model = Llama(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    taken = take_snapshot(model, build_adamw(model, OptimConfig(lr=0.1)))
    state = State(step=3, tokens=3, seconds=1.0, skipped=0)
    checkpoint_io.save_checkpoint(run.checkpoint(3), taken, shape, tokenizer, state)
    return run


@contextmanager
def serving(
    folder: Path, token: str = "", hosts: tuple[str, ...] = LOOPBACK, scheduler: Scheduler | None = None
) -> Iterator[str]:
    """Serve a model until the context ends; yields the address."""
    scheduler = scheduler or Scheduler(torch.device("cpu"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(Server(list_models(folder), scheduler, hosts, token).app(), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        scheduler.close()


@pytest.fixture
def address(run: RunDir) -> Iterator[str]:
    """The address of a server of the run's newest checkpoint."""
    with serving(run.checkpoint(2)) as found:
        yield found


Serving = Callable[..., Iterator[str]]

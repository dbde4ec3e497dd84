"""Other processes of a test, forked off, so that they have this one's imports already."""

import itertools
import os
import shlex
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from llamactl import cli
from llamactl.distributed import context as distributed_context
from llamactl.distributed.launch import read_launch
from llamactl.errors import UserError

_PORTS = itertools.count()


def forked(work: Callable[[], object]) -> int:
    """Do something in another process, which has this one's imports already."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except UserError as error:
            code = error.code
        finally:
            os._exit(code)
    return pid


def status(pid: int) -> int:
    """How a process ended: its exit code, or the signal that killed it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def launched(size: int, work: Callable[[], object], neighbours: int = 0) -> list[int]:
    """Processes that torchrun would start: each knows its rank and how many there are, and does the work with the others."""
    port = free_port()
    return [forked(partial(_take_part, rank, size, neighbours or size, port, work)) for rank in range(size)]


def together(size: int, work: Callable[[], object], neighbours: int = 0) -> None:
    """Launch processes and wait until each has ended well."""
    processes = launched(size, work, neighbours)
    assert [status(pid) for pid in processes] == [0] * size


def free_port() -> int:
    """A port that nobody listens at, below those that the system hands out by itself; each worker of pytest has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 500 * worker
    while True:
        port = first + next(_PORTS) % 500
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _take_part(rank: int, size: int, neighbours: int, port: int, work: Callable[[], object]) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    values = (rank, size, rank % neighbours, neighbours, port)
    os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)}, MASTER_ADDR="127.0.0.1")
    read_launch.cache_clear()
    torch.set_num_threads(1)
    try:
        with distributed_context.process_group():
            work()
    except Exception:
        traceback.print_exc()
        raise


def typed(command: str, log: Path, before: Callable[[], object] = lambda: None) -> int:
    """Type a command in a forked process; what it prints goes to a file. The answer is the process's number."""

    def work() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        before()
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        sys.argv = ["llamactl", *shlex.split(command)]
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 70
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 0)

    return forked(work)

"""Signals while a process of several fails."""

import os
import signal

import pytest

from llamactl.distributed.launch import read_launch
from llamactl.training.signals import handle_signals
from tests.processes import forked, status


@pytest.mark.parametrize(("size", "ended"), [(1, -signal.SIGTERM), (3, 0)])
def test_the_launchers_sigterm_does_not_hide_the_error_of_a_process(size: int, ended: int) -> None:
    """It comes as soon as one process has died, and the others must live to say what they know."""

    def fail() -> None:
        os.environ.update(WORLD_SIZE=str(size), RANK="0", MASTER_ADDR="127.0.0.1")
        read_launch.cache_clear()
        try:
            with handle_signals():
                raise RuntimeError("Connection closed by peer")
        except RuntimeError:
            os.kill(os.getpid(), signal.SIGTERM)

    assert status(forked(fail)) == ended

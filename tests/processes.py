"""Other processes of a test, forked off, so that they have this one's imports already."""

import os
from collections.abc import Callable

from llamactl.errors import UserError


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

"""A process that runs the command line in forks of itself, so that a thousand commands pay for their imports once.

Each request is a line of JSON on stdin and is answered by one on stdout. A fork has a memory limit and a deadline; one that
crashes or hangs takes nothing with it.
"""

import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

DEADLINE = float(os.environ.get("FUZZ_DEADLINE", "10"))  # seconds of a command
MEMORY = 1_500_000_000  # bytes of address space that a command may take beyond what the imports hold
LONGEST = 20_000  # characters of output that are reported


def main() -> None:
    """Answer requests until stdin ends."""
    _import_all()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _import_all() -> None:
    """Import what the commands import, and no more: nothing here starts a thread, so that forks are safe."""
    import matplotlib
    import torch
    import torch._dynamo  # what `torch.optim` imports late
    from matplotlib import pyplot

    import llamactl
    import llamactl.hardware.throughput
    import llamactl.inference.benchmark

    for module in pkgutil.walk_packages(llamactl.__path__, "llamactl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    torch.set_num_threads(1)
    # Both are measured, for a second of each command.
    setattr(llamactl.hardware.throughput, "peak_flops", lambda device, dtype: 1e10)  # noqa: B010
    setattr(llamactl.inference.benchmark, "reading_rate", lambda _: 1e10)  # noqa: B010
    matplotlib.use("agg")
    pyplot.figure()  # finds its fonts
    gc.freeze()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command: its exit code, what it printed, and how long it took."""
    log = Path(request["log"])
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _run(request, log)
    hung = not _ended(child)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    with log.open("rb") as file:
        told = file.read(LONGEST).decode("utf-8", "surrogateescape")
    code = -1 if hung else os.waitstatus_to_exitcode(status)
    return {"code": code, "told": told, "seconds": time.perf_counter() - started, "memory": usage.ru_maxrss * 1024}


def _ended(child: int) -> bool:
    """Wait for a process until the deadline."""
    descriptor = os.pidfd_open(child)
    try:
        return bool(select.select([descriptor], [], [], DEADLINE)[0])
    finally:
        os.close(descriptor)


def _run(request: dict[str, Any], log: Path) -> None:
    """Be the command; never returns."""
    code = 1
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["LLAMACTL_HOME"] = request["home"]
        os.chdir(request["home"])
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        sys.argv = ["llamactl", *request["words"]]
        from llamactl import cli

        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

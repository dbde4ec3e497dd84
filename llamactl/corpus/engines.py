"""Engines that run the jobs of a preparation: this process, several, or a Ray cluster. Results keep the order of the jobs."""

import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from threading import Thread
from typing import Any, Protocol, TypeVar

from llamactl import install_command
from llamactl.corpus.pieces import Job
from llamactl.errors import OutOfSpace, UsageError

PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent ends

R = TypeVar("R")


class Engine(Protocol):
    """A function that does the same work for many jobs."""

    def __call__(self, work: Callable[[Job], R], jobs: list[Job]) -> Generator[R, None, None]:
        """Yield the results in the order of the jobs; closing the generator cancels jobs that have not finished."""


def local_engine(workers: int) -> Engine:
    """Return an engine that runs jobs in this process, or in `workers` others if that is more than one."""

    def run(work: Callable[[Job], R], jobs: list[Job]) -> Generator[R, None, None]:
        if workers <= 1:
            yield from map(work, jobs)
        else:
            yield from _run_in_processes(work, jobs, workers)

    return run


def _run_in_processes(work: Callable[[Job], R], jobs: list[Job], workers: int) -> Generator[R, None, None]:
    # spawn: a forked child would share the locks of the parent's threads (pyarrow, tokenizers).
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        remaining = iter(jobs)
        try:
            # Two jobs per worker: the next one is there when a worker finishes, yet few results wait in memory.
            pending: list[Future[R]] = [pool.submit(work, job) for job in islice(remaining, 2 * workers)]
            while pending:
                result = pending.pop(0).result()
                pending.extend(pool.submit(work, job) for job in islice(remaining, 1))
                yield result
        except BrokenProcessPool as error:
            fix = "Run the same command again with fewer --workers; finished pieces are kept."
            raise OutOfSpace("A worker process died.", "Most often the system ran out of memory.", fix) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            # cancel_futures spares the jobs that run: they are ended here, as finished pieces are on disk already.
            for process in multiprocessing.active_children():
                process.terminate()


def _start_worker(parent: int) -> None:
    """Set up a worker process: it ends with its parent, ignores Ctrl-C, and tokenizes in one thread."""
    _die_with(parent)
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The workers themselves use the cores; the tokenizer's thread pool would oversubscribe them.
    os.environ["RAYON_NUM_THREADS"] = "1"


def _die_with(parent: int) -> None:
    """End this process when its parent ends for any reason: an orphan would write to files that a rerun writes too.

    Linux kills it at once; elsewhere a thread waits for the end of a pipe whose other end only the parent has.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "prctl") or libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        Thread(target=_wait_for_parent, daemon=True).start()
    # The parent may have ended before prctl was called, which then sends no signal.
    if os.getppid() != parent:
        os._exit(1)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def ray_engine(workers: int) -> Engine:
    """Return an engine that runs a task per piece on the Ray cluster in RAY_ADDRESS, or on `workers` processors here.

    Every node must see the inputs and the dataset's folder under the same paths. Raises UsageError when Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no network but what was asked for
    try:
        import ray as cluster
    except ImportError as error:
        raise UsageError("Ray is not installed.", "", install_command("ray")) from error

    def run(work: Callable[[Job], R], jobs: list[Job]) -> Generator[R, None, None]:
        resources: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        cluster.init(logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True, **resources)
        task = cluster.remote(work).options(runtime_env={"env_vars": {"RAYON_NUM_THREADS": "1"}})
        remaining = iter(jobs)
        processors: Any = cluster.cluster_resources()  # type: ignore[no-untyped-call]
        max_pending = 2 * int(processors.get("CPU", 1))
        try:
            pending = [task.remote(job) for job in islice(remaining, max_pending)]
            while pending:
                result: R = cluster.get(pending.pop(0))
                pending.extend(task.remote(job) for job in islice(remaining, 1))
                yield result
        except cluster.exceptions.RayTaskError as error:
            # Ray wraps what a task raised; callers handle the original error.
            raise error.cause from error
        finally:
            cluster.shutdown()

    return run


ENGINES: dict[str, Callable[[int], Engine]] = {"local": local_engine, "ray": ray_engine}

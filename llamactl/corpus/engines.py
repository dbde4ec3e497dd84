"""Where pieces are made: in this process, in several, or on a Ray cluster. Results come in the order of the jobs."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Protocol, TypeVar

from llamactl.corpus.pieces import Job
from llamactl.errors import BadUsage, NoRoom

R = TypeVar("R")


class Engine(Protocol):
    """Runs the same work for many jobs."""

    def __call__(self, work: Callable[[Job], R], jobs: list[Job]) -> Generator[R, None, None]:
        """The results, in order; closing the generator stops what is under way."""


def local(workers: int) -> Engine:
    """In this process, or in `workers` others."""

    def run(work: Callable[[Job], R], jobs: list[Job]) -> Generator[R, None, None]:
        if workers <= 1:
            yield from map(work, jobs)
        else:
            yield from _run_in_processes(work, jobs, workers)

    return run


def _run_in_processes(work: Callable[[Job], R], jobs: list[Job], workers: int) -> Generator[R, None, None]:
    # spawn: a forked child would share the locks of the parent's threads (pyarrow, tokenizers).
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        left = iter(jobs)
        try:
            waiting: list[Future[R]] = [pool.submit(work, job) for job in islice(left, 2 * workers)]
            while waiting:
                result = waiting.pop(0).result()
                waiting.extend(pool.submit(work, job) for job in islice(left, 1))
                yield result
        except BrokenProcessPool as error:
            fix = "Run the same command again with fewer --workers; finished pieces are kept."
            raise NoRoom("A worker process died.", "Most often the system ran out of memory.", fix) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def _start_worker() -> None:
    """Ctrl-C reaches the whole process group, and the parent decides what it means; one thread a process is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["RAYON_NUM_THREADS"] = "1"


def ray(workers: int) -> Engine:
    """A task a piece on the Ray cluster that RAY_ADDRESS names, or on `workers` processors of this machine.

    Every node must see the inputs and the dataset's folder under the same paths. Raises BadUsage without Ray.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no network but what was asked for
    try:
        import ray as cluster
    except ImportError as error:
        raise BadUsage("Ray is not installed.", "", "pip install 'llamactl[ray]'") from error

    def run(work: Callable[[Job], R], jobs: list[Job]) -> Generator[R, None, None]:
        where: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        cluster.init(logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True, **where)
        task = cluster.remote(work).options(runtime_env={"env_vars": {"RAYON_NUM_THREADS": "1"}})
        left = iter(jobs)
        processors: Any = cluster.cluster_resources()  # type: ignore[no-untyped-call]
        ahead = 2 * int(processors.get("CPU", 1))
        try:
            waiting = [task.remote(job) for job in islice(left, ahead)]
            while waiting:
                result: R = cluster.get(waiting.pop(0))
                waiting.extend(task.remote(job) for job in islice(left, 1))
                yield result
        except cluster.exceptions.RayTaskError as error:
            raise error.cause from error
        finally:
            cluster.shutdown()

    return run


ENGINES: dict[str, Callable[[int], Engine]] = {"local": local, "ray": ray}

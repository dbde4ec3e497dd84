"""Batches made ready while the device computes on the ones before."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes item k + 1 in a thread while item k is used; any k may be asked for, in order it takes no time."""

    def __init__(self, make: Callable[[int], T]) -> None:
        """`make` is a pure function of a number."""
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._waiting: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """The item of a number; raises what making it raised."""
        item = self._waiting.pop(number, None) or self._pool.submit(self._make, number)
        self._waiting = {number + 1: self._pool.submit(self._make, number + 1)}
        return item.result()

    def close(self) -> None:
        """Let the thread go."""
        self._pool.shutdown(cancel_futures=True)

"""Load the next batch in a thread while the device computes on the current one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Loads item k + 1 in a thread while item k is in use. Any k may be requested; in order there is no wait."""

    def __init__(self, make: Callable[[int], T]) -> None:
        """Prefetch the results of `make`, a pure function of an index."""
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        # The item after the last one requested, by its index.
        self._pending: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """Return an item by its index; raises what `make` raised for it."""
        # After a jump, as a rollback makes one, the pending item is dropped and the requested one is made now.
        item = self._pending.pop(number, None) or self._pool.submit(self._make, number)
        self._pending = {number + 1: self._pool.submit(self._make, number + 1)}
        return item.result()

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(cancel_futures=True)

"""What is made ahead is what would have been made on the spot."""

import threading

import pytest

from llamactl.training.prefetch import Prefetcher


def test_any_number_may_be_asked_for() -> None:
    squares = Prefetcher(lambda number: number**2)
    assert [squares(number) for number in (0, 1, 2, 7, 8, 3, 3)] == [0, 1, 4, 49, 64, 9, 9]


def test_the_next_one_is_made_while_nobody_asks() -> None:
    made = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            made.set()
        return number

    assert Prefetcher(make)(0) == 0
    assert made.wait(timeout=10)


def test_an_error_reaches_whoever_asks() -> None:
    with pytest.raises(ZeroDivisionError):
        Prefetcher(lambda number: 1 // number)(0)

"""Numbers as people write and read them."""

from itertools import product

import pytest

from llamactl.errors import UsageError
from llamactl.units import read_count, read_time, show_bytes, show_count, show_mfu, show_time


@pytest.mark.parametrize(
    ("text", "count"),
    [("256000", 256_000), ("256k", 256_000), ("1.5B", 1_500_000_000), ("2_000", 2_000), ("2,000", 2_000), ("1.2M", 1_200_000)],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert read_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "k", "-5", "0", "1.5", "nan", "inf", "1e400", "ten", "99999999999B", "sNaN", "1e999999999", "1.0005k"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_count(text)


def test_a_share_above_all_is_not_believed() -> None:
    assert [show_mfu(share) for share in (0.0, 0.456, 1.0, 2.11)] == ["0%", "46%", "100%", "?"]


def test_what_is_shown_is_read_again() -> None:
    for digits, power in product(range(1, 1000), range(1, 16)):
        shown = show_count(digits * 10**power)
        assert read_count(shown) == digits * 10**power, shown


def test_no_unit_holds_a_thousand_of_it() -> None:
    assert [show_count(n) for n in (999_499, 999_600, 999_999_999)] == ["999k", "1M", "1B"]
    assert [show_bytes(n) for n in (999_600, 999_999_999)] == ["1 MB", "1 GB"]


def test_quantities_are_shown() -> None:
    assert [show_count(n) for n in (0, 999, 14_336, 1_204_224, 3e9)] == ["0", "999", "14.3k", "1.2M", "3B"]
    assert [show_bytes(n) for n in (12, 640e6, 1.53e9)] == ["12 B", "640 MB", "1.53 GB"]
    assert [show_time(s) for s in (0, 59.4, 59.6, 185, 7800)] == ["0s", "59s", "1m 00s", "3m 05s", "2h 10m"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86_400), (" 2 M ", 120)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert read_time(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "-5m", "m", "1x", "1m1h", "inf", "9" * 5000 + "s", "400d", "٣m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        read_time(text)

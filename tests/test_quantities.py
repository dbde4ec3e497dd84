"""Numbers as people write and read them."""

import pytest

from llamactl.errors import BadUsage
from llamactl.quantities import read_count, show_bytes, show_count, show_time


@pytest.mark.parametrize(
    ("text", "count"),
    [("256000", 256_000), ("256k", 256_000), ("1.5B", 1_500_000_000), ("2_000", 2_000), ("2,000", 2_000), ("1.2M", 1_200_000)],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert read_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-5", "0", "1.5", "nan", "inf", "1e400", "ten", "99999999999B"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadUsage):
        read_count(text)


def test_quantities_are_shown() -> None:
    assert [show_count(n) for n in (0, 999, 14_336, 1_204_224, 3e9)] == ["0", "999", "14.3k", "1.2M", "3B"]
    assert [show_bytes(n) for n in (12, 640e6, 1.53e9)] == ["12 B", "640 MB", "1.53 GB"]
    assert [show_time(s) for s in (0, 59.4, 59.6, 185, 7800)] == ["0s", "59s", "1m 00s", "3m 05s", "2h 10m"]

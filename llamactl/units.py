"""Read and format quantities as people write them: 256k tokens, 1.5 GB, 3m 05s."""

import math
import re
from decimal import Decimal

from llamactl.errors import UsageError

TIME = re.compile("".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]{{1,3}})?){unit})?" for unit in "dhms"))
TIMES = (86_400, 3_600, 60, 1)
LONGEST_TIME = 366 * 86_400
ROUNDS_UP = 0.9995  # of a unit: with three digits that is 1 of it, where 999.6 of the smaller one would be 1e+03
COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def read_count(text: str) -> int:
    """Read a positive integer such as 256000, 256k, 1.5B or 2_000; raises UsageError for any other text."""
    bare = text.strip().lower().replace("_", "").replace(",", "")
    scale = COUNTS.get(bare[-1:], 1)
    try:
        # Not a float: 8.19 * 1000 is not a whole one.
        count = Decimal(bare[:-1] if scale > 1 else bare) * scale
    except ArithmeticError:
        count = Decimal(0)
    if not count.is_finite() or not 1 <= count < 2**63 or count != int(count):
        raise UsageError(f"{text!r} is not a count.", "Write it like 256000, 256k or 1.5B.")
    return int(count)


def show_count(value: float) -> str:
    """Format a count with three significant digits: 256k, 1.2M, 3B."""
    for suffix, size in reversed(COUNTS.items()):
        if abs(value) >= ROUNDS_UP * size:
            return f"{value / size:.3g}{suffix if suffix == 'k' else suffix.upper()}"
    return f"{value:.0f}"


def show_bytes(value: float) -> str:
    """Format a number of bytes in decimal units with three significant digits: 1.53 GB, 640 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= ROUNDS_UP * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def read_time(text: str) -> float:
    """Read a duration such as 90s, 10m, 2h, 1h30m or 1d, in seconds; raises UsageError for any other text."""
    found = TIME.fullmatch(text.strip().lower().replace(" ", ""))
    seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), TIMES, strict=True)) if found else 0.0
    if not 0 < seconds <= LONGEST_TIME:
        raise UsageError(f"{text!r} is not a time.", "Write it like 90s, 10m, 2h or 1d.")
    return seconds


def show_time(seconds: float) -> str:
    """Format seconds in the two largest units: 42s, 3m 05s, 2h 10m; returns ? for a number that is not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600:,}h {whole % 3600 // 60:02}m"


def show_loss(value: float, error: float | None = None) -> str:
    """Format a loss with its standard error, if there is a finite one: 3.778 ± 0.021."""
    known = error is not None and math.isfinite(error)
    return f"{value:.3f} ± {error:.3f}" if known else f"{value:.3f}"


def show_mfu(mfu: float) -> str:
    """Format a share of the peak rate; "?" above 1, where the rate was measured while others kept the cores busy."""
    return f"{mfu:.0%}" if mfu <= 1 else "?"

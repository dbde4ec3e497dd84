"""Quantities as people write and read them: 256k tokens, 1.5 GB, 3m 05s."""

from llamactl.errors import BadUsage

COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def read_count(text: str) -> int:
    """The count in 256000, 256k, 1.5B or 2_000; raises BadUsage for anything else."""
    bare = text.strip().lower().replace("_", "").replace(",", "")
    scale = COUNTS.get(bare[-1:], 1)
    try:
        count = float(bare[:-1] if scale > 1 else bare) * scale
    except ValueError:
        count = 0.0
    if not 1 <= count < 2**63 or count != int(count):
        raise BadUsage(f"{text!r} is not a count.", "Write it like 256000, 256k or 1.5B.")
    return int(count)


def show_count(value: float) -> str:
    """A count in three digits: 256k, 1.2M, 3B."""
    for suffix, size in reversed(COUNTS.items()):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix if suffix == 'k' else suffix.upper()}"
    return f"{value:.0f}"


def show_bytes(value: float) -> str:
    """Bytes in decimal units: 1.53 GB, 640 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def show_time(seconds: float) -> str:
    """A time in its two largest units: 42s, 3m 05s, 2h 10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600:,}h {whole % 3600 // 60:02}m"

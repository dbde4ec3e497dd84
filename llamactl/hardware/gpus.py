"""GPUs by name, with the figures of their data sheets, to plan for one that this machine does not have."""

from dataclasses import dataclass

from llamactl.errors import UsageError, suggest_nearest


@dataclass(frozen=True)
class Card:
    """A GPU: dense bf16 FLOP/s of its tensor cores, bytes of memory, board power in watts, bytes per second to another one."""

    rate: float
    memory: float
    watts: int
    link_bandwidth: float


# Bytes per second in one direction. PCIe 4.0 has 31.5e9 on 16 lanes, of which copies reach about four fifths. NVLink's data
# sheets add both directions: A100 600 GB/s, H100 and H200 900, B200 1,800. The bridges between two A5000, A6000 or RTX 3090
# are left out.
PCIE = 25e9

# NVIDIA's data sheets; FLOP/s without sparsity. A name that contains another one stands below it (see recognize_card).
CARDS = {
    "A4000": Card(76.7e12, 16e9, 140, PCIE),
    "A5000": Card(111.1e12, 24e9, 230, PCIE),
    "A6000": Card(154.8e12, 48e9, 300, PCIE),
    "RTX 3090": Card(71e12, 24e9, 350, PCIE),
    "RTX 4090": Card(165.2e12, 24e9, 450, PCIE),
    "L4": Card(121e12, 24e9, 72, PCIE),
    "L40S": Card(362e12, 48e9, 350, PCIE),
    "A100": Card(312e12, 80e9, 400, 300e9),
    "H100": Card(989.4e12, 80e9, 700, 450e9),
    "H200": Card(989.4e12, 141e9, 700, 450e9),
    "B200": Card(2250e12, 180e9, 1000, 900e9),
}


def find_card(name: str) -> Card:
    """Return a GPU by the name people write, rtx4090 or h100; raises UsageError with the nearest name."""
    cards = {_normalize(known): card for known, card in CARDS.items()}
    if _normalize(name) not in cards:
        raise UsageError(f"Unknown GPU {name!r}.", suggest_nearest(name.upper(), CARDS), f"Known: {', '.join(CARDS)}")
    return cards[_normalize(name)]


def recognize_card(device_name: str) -> Card | None:
    """Return a GPU by its driver's name, "NVIDIA A100-SXM4-80GB"; None for one that is not in the table."""
    matches = [card for name, card in CARDS.items() if name in device_name.split() or name in device_name]
    # The last match is the longest name: "NVIDIA L40S" contains L4 too.
    return matches[-1] if matches else None


def _normalize(name: str) -> str:
    """Remove what people write differently: case, spaces, hyphens, and the words NVIDIA and RTX."""
    return name.lower().replace(" ", "").replace("-", "").removeprefix("nvidia").removeprefix("rtx")

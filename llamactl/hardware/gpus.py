"""GPUs by name, with the figures of their data sheets, to plan for one that this machine does not have."""

import re
from dataclasses import dataclass, replace

from llamactl.errors import UsageError, suggest_nearest


@dataclass(frozen=True)
class Card:
    """A GPU: dense FLOP/s of its tensor cores, bytes of memory, board power in watts, bytes per second to another one.

    The FLOP/s are those of bf16 with sums in fp32, or of fp16 where the tensor cores have no bf16 (before Ampere).
    """

    rate: float
    memory: float
    watts: int
    link_bandwidth: float
    has_bf16: bool = True


# Bytes per second in one direction. PCIe 4.0 has 31.5e9 on 16 lanes, of which copies reach about four fifths. NVLink's data
# sheets add both directions: V100 300 GB/s, A100 600, H100 and H200 900, B200 1,800. Bridges between two cards are left out.
PCIE = 25e9

# NVIDIA's data sheets and white papers; FLOP/s without sparsity. GeForce cards sum in fp32 at half the rate of the professional
# ones with the same chip. Of a name with several sizes of memory, this is the usual one.
CARDS = {
    "T4": Card(65e12, 16e9, 70, PCIE, has_bf16=False),
    "RTX 2080 Ti": Card(53.8e12, 11e9, 250, PCIE, has_bf16=False),
    "V100": Card(125e12, 32e9, 300, 150e9, has_bf16=False),
    "V100 PCIe": Card(112e12, 32e9, 250, PCIE, has_bf16=False),
    "A10": Card(125e12, 24e9, 150, PCIE),
    "A10G": Card(70e12, 24e9, 300, PCIE),
    "A40": Card(149.7e12, 48e9, 300, PCIE),
    "A4000": Card(76.7e12, 16e9, 140, PCIE),
    "A5000": Card(111.1e12, 24e9, 230, PCIE),
    "A6000": Card(154.8e12, 48e9, 300, PCIE),
    "RTX 3060": Card(25.5e12, 12e9, 170, PCIE),
    "RTX 3060 Ti": Card(32.4e12, 8e9, 200, PCIE),
    "RTX 3070": Card(40.6e12, 8e9, 220, PCIE),
    "RTX 3070 Ti": Card(43.5e12, 8e9, 290, PCIE),
    "RTX 3080": Card(59.5e12, 10e9, 320, PCIE),
    "RTX 3080 Ti": Card(68.2e12, 12e9, 350, PCIE),
    "RTX 3090": Card(71e12, 24e9, 350, PCIE),
    "RTX 3090 Ti": Card(80e12, 24e9, 450, PCIE),
    "RTX 4060": Card(30.2e12, 8e9, 115, PCIE),
    "RTX 4060 Ti": Card(44.1e12, 8e9, 160, PCIE),
    "RTX 4070": Card(58.3e12, 12e9, 200, PCIE),
    "RTX 4070 SUPER": Card(71e12, 12e9, 220, PCIE),
    "RTX 4070 Ti": Card(80.2e12, 12e9, 285, PCIE),
    "RTX 4070 Ti SUPER": Card(88.2e12, 16e9, 285, PCIE),
    "RTX 4080": Card(97.5e12, 16e9, 320, PCIE),
    "RTX 4080 SUPER": Card(104.4e12, 16e9, 320, PCIE),
    "RTX 4090": Card(165.2e12, 24e9, 450, PCIE),
    "RTX 4090 D": Card(147.1e12, 24e9, 425, PCIE),
    "RTX 5070": Card(61.7e12, 12e9, 250, PCIE),
    "RTX 5070 Ti": Card(87.9e12, 16e9, 300, PCIE),
    "RTX 5080": Card(112.6e12, 16e9, 360, PCIE),
    "RTX 5090": Card(209.5e12, 32e9, 575, PCIE),
    "L4": Card(121e12, 24e9, 72, PCIE),
    "L40": Card(181e12, 48e9, 300, PCIE),
    "L40S": Card(362e12, 48e9, 350, PCIE),
    "RTX 6000 Ada": Card(364.2e12, 48e9, 300, PCIE),
    "A100": Card(312e12, 80e9, 400, 300e9),
    "A100 PCIe": Card(312e12, 80e9, 300, PCIE),
    "H100": Card(989.4e12, 80e9, 700, 450e9),
    "H100 PCIe": Card(756e12, 80e9, 350, PCIE),
    "H100 NVL": Card(835e12, 94e9, 400, PCIE),
    "GH200": Card(989.4e12, 96e9, 700, 450e9),
    "H200": Card(989.4e12, 141e9, 700, 450e9),
    "H200 NVL": Card(835e12, 141e9, 600, PCIE),
    "B200": Card(2250e12, 180e9, 1000, 900e9),
}
# Words of a name that do not decide which of these it is: the maker, the socket, the memory.
NEUTRAL = re.compile(r"NVIDIA|Tesla|GeForce|Quadro|RTX|Generation|SXM\d?|HBM\de?|\d+GB", re.IGNORECASE)


def find_card(name: str) -> Card:
    """Return a GPU by the name people write, rtx4090, a100-40gb or 3090ti; raises UsageError with the nearest name."""
    cards = {_significant(known): card for known, card in CARDS.items()}
    wanted = re.sub(r"(?<=\d)\s+(?=GB\b)", "", name, flags=re.IGNORECASE)
    if _significant(wanted) not in cards:
        raise UsageError(f"Unknown GPU {name!r}.", suggest_nearest(name.upper(), CARDS), f"Known: {', '.join(CARDS)}")
    card, size = cards[_significant(wanted)], re.search(r"(\d+)GB", wanted, re.IGNORECASE)
    return replace(card, memory=int(size[1]) * 1e9) if size else card


def recognize_card(device_name: str) -> Card | None:
    """Return a GPU by its driver's name, "NVIDIA A100-SXM4-80GB"; None for one that is not in the table.

    Every word counts: a laptop's RTX 4090, a slice of an H100 or another socket has other figures under a longer name.
    """
    found = _significant(device_name)
    # An "RTX 6000" is of Turing, "RTX 6000 Ada" of Ada, and neither is an "A6000".
    return next((card for known, card in CARDS.items() if _significant(known) == found), None)


def _significant(name: str) -> str:
    """Return what of a name decides the figures, without case, spaces and hyphens."""
    words = re.split(r"[\s_-]+", re.sub(r"(?i)^(nvidia|geforce|rtx)+(?=\w)", "", name))
    return "".join(word for word in words if not NEUTRAL.fullmatch(word)).lower()

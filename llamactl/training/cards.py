"""Cards by name, as their makers' data sheets have them, to plan for one that is not here."""

from dataclasses import dataclass, replace

import torch

from llamactl.errors import BadUsage, nearest
from llamactl.model.device import Precision
from llamactl.training.world import World


@dataclass(frozen=True)
class Card:
    """Dense bf16 tensor-core rate in FLOP/s, bytes of memory, watts of the board, bytes a second that it sends to another."""

    rate: float
    memory: float
    watts: int
    link: float

    @property
    def world(self) -> World:
        """A world of one such card, whose memory is the driver's but for half a gigabyte."""
        precision = Precision(torch.bfloat16, "by its data sheet")
        return World(torch.device("cuda"), precision, room=int(self.memory - 0.5e9), link=self.link)

    def asked(self, precision: str) -> World:
        """The same with products in the format that is asked for, auto or one of 16 bits; raises BadUsage for fp32."""
        if precision == "fp32":
            why = "Our table has a card's rate for formats of 16 bits."
            raise BadUsage("--card can't be planned for with fp32 products.", why, "Add: --precision bf16")
        return replace(self.world, precision=Precision(torch.float16, "as asked")) if precision == "fp16" else self.world


# Bytes a second in one direction. PCIe 4.0 has 31.5e9 on 16 lanes, of which copies reach about four fifths. NVLink's data
# sheets have both directions together: A100 600 GB/s, H100 and H200 900, B200 1,800. The bridges that join two A5000, A6000
# or RTX 3090 are left out.
PCIE = 25e9

# NVIDIA's data sheets; rates without sparsity.
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


def find(name: str) -> Card:
    """The card of a name as people write it, rtx4090 or h100; raises BadUsage with the nearest."""
    plain = {_plain(known): card for known, card in CARDS.items()}
    if _plain(name) not in plain:
        raise BadUsage(f"There is no card {name!r} in our table.", nearest(name.upper(), CARDS), f"Known: {', '.join(CARDS)}")
    return plain[_plain(name)]


def recognise(device_name: str) -> Card | None:
    """The card in the name that a driver gives it, "NVIDIA A100-SXM4-80GB"; None for one that is not in the table."""
    known = [card for name, card in CARDS.items() if name in device_name.split() or name in device_name]
    return known[-1] if known else None


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "").removeprefix("nvidia").removeprefix("rtx")

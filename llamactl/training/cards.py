"""Cards by name, as their makers' data sheets have them, to plan for one that is not here."""

from dataclasses import dataclass

import torch

from llamactl.errors import BadUsage, nearest
from llamactl.model.device import Precision
from llamactl.training.world import World


@dataclass(frozen=True)
class Card:
    """Dense bf16 tensor-core rate in FLOP/s, bytes of memory, and watts of the board."""

    rate: float
    memory: float
    watts: int

    @property
    def world(self) -> World:
        """A world of one such card, whose memory is the driver's but for half a gigabyte."""
        return World(torch.device("cuda"), Precision(torch.bfloat16, "by its data sheet"), room=int(self.memory - 0.5e9))


# NVIDIA's data sheets; rates without sparsity.
CARDS = {
    "A4000": Card(76.7e12, 16e9, 140),
    "A5000": Card(111.1e12, 24e9, 230),
    "A6000": Card(154.8e12, 48e9, 300),
    "RTX 3090": Card(71e12, 24e9, 350),
    "RTX 4090": Card(165.2e12, 24e9, 450),
    "L4": Card(121e12, 24e9, 72),
    "L40S": Card(362e12, 48e9, 350),
    "A100": Card(312e12, 80e9, 400),
    "H100": Card(989.4e12, 80e9, 700),
    "H200": Card(989.4e12, 141e9, 700),
    "B200": Card(2250e12, 180e9, 1000),
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

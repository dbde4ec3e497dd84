"""What the processes of a run tell one another in a step: the bytes that one of them sends, and the seconds that takes."""

from dataclasses import astuple, dataclass

import torch

from llamactl.config import Config
from llamactl.model.llama import count
from llamactl.training.cards import PCIE, recognise
from llamactl.training.sizing import block_weights, own_windows, root_weights, stacks
from llamactl.training.world import World

# Bytes a second. Between machines each GPU is given 200 Gb/s, assumed. On a CPU, processes of one machine that sum up 1 to
# 100 MB by gloo send 0.65e9 to 0.93e9, and those that gather or scatter as much 0.1e9 to 0.7e9: roughly half of 1e9.
NETWORK = 25e9
LOOPBACK = 0.5e9

# Bytes of NCCL's buffers: they grow with the channels, thus with the link, so that some seconds of it are counted. On eight
# H100 1.1 GB were reported, and 3.3 GB more where each sends to each, as Muon does (github.com/NVIDIA/nccl/issues/864, 1685).
NCCL, NCCL_LINK, NCCL_EACH_TO_EACH = 200e6, 2e-3, 7e-3


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in a step.

    Among the `shards` that hold one copy of the model: weights that are gathered, gradients that are added up and scattered,
    and matrices dealt out for Muon, there and back. Between the `replicas` of it: gradients that are added up, and Muon's
    updates.
    """

    weights: int = 0
    gradients: int = 0
    dealt: int = 0
    copies: int = 0
    updates: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


def traffic(config: Config, world: World) -> Traffic:
    """The traffic of a resolved config, by algorithms that send no byte twice (rings).

    Each micro-batch gathers the blocks in the format of products, forward and backward, and the rest once in fp32, and scatters
    gradients in fp32; replicas add up what they have once a step.
    """
    model, shards, replicas = config.model, world.shards, world.replicas
    times, others, weights = rounds(config, world), (shards - 1) / shards, count(model)
    once = 2 * world.precision.dtype.itemsize * model.layers * block_weights(model) + 4 * root_weights(model)
    dealt = _dealt(config, world)
    return Traffic(
        weights=round(times * others * once),
        gradients=round(times * others * 4 * weights),
        dealt=round(2 * others * dealt),
        copies=round(2 * (replicas - 1) / replicas * 4 * weights / shards),
        updates=(replicas - 1) * dealt,
    )


def rounds(config: Config, world: World) -> int:
    """Micro-batches of a step, of which every process has the same number."""
    own = own_windows(config.train.tokens_per_step // config.model.context, world.size)
    return -(-own // config.train.micro_batch)


def _dealt(config: Config, world: World) -> int:
    """Bytes of the matrices that Muon gives to one process, in fp32."""
    if config.optim.name != "muon":
        return 0
    return sum(4 * -(-number // world.size) * rows * columns for (rows, columns), number in stacks(config.model).items())


def seconds(sent: Traffic, world: World) -> tuple[float, float]:
    """How long it takes to send what is sent while gradients are worked out, and what Muon sends."""
    neighbours = world.neighbours
    within = _speed(world, world.shards <= neighbours, neighbours)
    across = _speed(world, world.size <= neighbours, max(1, neighbours // world.shards))
    return (sent.weights + sent.gradients) / within + sent.copies / across, sent.dealt / within + sent.updates / across


def _speed(world: World, near: bool, here: int) -> float:
    """Bytes a second that a process sends to a group: on this machine, or over the network with `here` of its members."""
    return link(world) if near else min(link(world), here * NETWORK)


def link(world: World) -> float:
    """Bytes a second that a device sends to its neighbours."""
    if world.link:
        return world.link
    if world.device.type != "cuda":
        return LOOPBACK
    name = torch.cuda.get_device_name(world.device)
    card = recognise(name)
    return card.link if card and "PCI" not in name.upper() else PCIE


def overlaps(world: World) -> bool:
    """Whether the device computes while it sends."""
    return world.device.type == "cuda"


def buffers(optimizer: str, world: World) -> int:
    """Bytes on a GPU that hold what is on its way."""
    if world.size == 1 or world.device.type != "cuda":
        return 0
    held = NCCL_LINK + (NCCL_EACH_TO_EACH if optimizer == "muon" and world.shards > 1 else 0)
    return round(NCCL + held * link(world))

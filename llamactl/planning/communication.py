"""Estimate the communication of a step: the bytes that a rank sends, and the seconds that it takes."""

from dataclasses import astuple, dataclass

import torch

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config
from llamactl.distributed.context import World
from llamactl.hardware.gpus import PCIE, recognize_card
from llamactl.planning.batch_size import windows_per_rank
from llamactl.planning.flops import matrix_shapes, num_block_params, num_root_params

# Bytes per second. Between machines 200 Gb/s per GPU are assumed. On a CPU, gloo was measured between processes of one
# machine, with 1 to 100 MB: 0.65e9 to 0.93e9 for all-reduce, 0.1e9 to 0.7e9 for gather and scatter.
NETWORK = 25e9
LOOPBACK = 0.5e9

# NCCL's buffers in bytes, and in seconds of the link's bandwidth: they grow with the channels, thus with the link. On eight
# H100 1.1 GB were reported, and 3.3 GB more for all-to-all, as Muon uses it (github.com/NVIDIA/nccl/issues/864, 1685).
NCCL, NCCL_LINK, NCCL_EACH_TO_EACH = 200e6, 2e-3, 7e-3


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in a step.

    Among the shards of one copy of the model: all-gathered `weights`, reduce-scattered `gradients`, and Muon's matrices, sent
    to the ranks that update them and back (`muon`). Between replicas: all-reduced gradients (`copies`) and Muon's `updates`.
    """

    weights: int = 0
    gradients: int = 0
    muon: int = 0
    copies: int = 0
    updates: int = 0

    @property
    def total(self) -> int:
        """Return the sum."""
        return sum(astuple(self))


def estimate_traffic(config: Config, world: World) -> Traffic:
    """Estimate the bytes that a rank sends in a step of a resolved config."""
    # Of N ranks in a ring, each sends (N - 1) / N of what is gathered or scattered, and twice that to all-reduce.
    model, shards, replicas = config.model, world.shards, world.replicas
    micro_batches, fraction, weights = micro_batches_per_step(config, world), (shards - 1) / shards, num_params(model)
    # Blocks are gathered in the compute dtype, forward and backward; embedding and head once per micro-batch, in fp32.
    gathered = 2 * world.precision.dtype.itemsize * model.n_layers * num_block_params(model) + 4 * num_root_params(model)
    muon = _muon_bytes(config, world)
    return Traffic(
        weights=round(micro_batches * fraction * gathered),
        gradients=round(micro_batches * fraction * 4 * weights),
        muon=round(2 * fraction * muon),
        copies=round(2 * (replicas - 1) / replicas * 4 * weights / shards),
        updates=(replicas - 1) * muon,
    )


def micro_batches_per_step(config: Config, world: World) -> int:
    """Return the micro-batches of a step per rank, the same number on all ranks."""
    windows = windows_per_rank(config.train.tokens_per_step // config.model.context, world.size)
    return -(-windows // config.train.micro_batch)


def _muon_bytes(config: Config, world: World) -> int:
    """Return the bytes of the matrices that one rank updates with Muon, in fp32."""
    if config.optim.name != "muon":
        return 0
    return sum(4 * -(-number // world.size) * rows * columns for (rows, columns), number in matrix_shapes(config.model).items())


def exchange_seconds(sent: Traffic, world: World) -> tuple[float, float]:
    """Estimate the seconds of a step's communication: of weights and gradients, and of Muon's matrices."""
    local_ranks = world.local_world_size
    within = _group_bandwidth(world, world.shards <= local_ranks, local_ranks)
    across = _group_bandwidth(world, world.size <= local_ranks, max(1, local_ranks // world.shards))
    return (sent.weights + sent.gradients) / within + sent.copies / across, sent.muon / within + sent.updates / across


def _group_bandwidth(world: World, local: bool, members: int) -> float:
    """Return the bytes per second that a rank sends to a group, on one machine or with `members` on each of several."""
    # A ring leaves each machine once, over the network cards of all its members.
    return link_bandwidth(world) if local else min(link_bandwidth(world), members * NETWORK)


def link_bandwidth(world: World) -> float:
    """Return the bytes per second that a device sends to another one of its machine."""
    if world.link_bandwidth:
        return world.link_bandwidth
    if world.device.type != "cuda":
        return LOOPBACK
    # The table has the bandwidth of NVLink, which the PCIe versions of the same GPUs lack.
    name = torch.cuda.get_device_name(world.device)
    card = recognize_card(name)
    return card.link_bandwidth if card and "PCI" not in name.upper() else PCIE


def overlaps_compute(world: World) -> bool:
    """Check whether communication overlaps with compute: on a GPU it does, on a CPU both need the same cores."""
    return world.device.type == "cuda"


def buffer_bytes(optimizer: str, world: World) -> int:
    """Return the bytes of GPU memory that NCCL's buffers take; 0 on a CPU or for one rank."""
    if world.size == 1 or world.device.type != "cuda":
        return 0
    seconds = NCCL_LINK + (NCCL_EACH_TO_EACH if optimizer == "muon" and world.shards > 1 else 0)
    return round(NCCL + seconds * link_bandwidth(world))

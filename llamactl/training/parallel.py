"""A model laid out over the processes of a run by PyTorch's DDP and FSDP2, and Muon's matrices dealt out among them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from llamactl.model.objective import NextToken
from llamactl.training import muon
from llamactl.training.muon import Work
from llamactl.training.world import World

# Its name up to torch 2.12, and since.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@cache
def mesh(world: World) -> DeviceMesh:
    """The processes in rows that hold the same part of every weight, and columns that together hold one copy of the model."""
    return init_device_mesh(world.device.type, (world.replicas, world.shards), mesh_dim_names=("replicate", "shard"))


def shard(objective: NextToken, world: World) -> None:
    """Give each process its part of every weight, in place: blocks one by one, the embedding and the head together.

    Blocks are gathered in the format of products, which is what autocast would make of them; the residual stream, embedding,
    head and all sums of gradients are fp32, as in a world of one.
    """
    over = mesh(world) if world.replicas > 1 else mesh(world)["shard"]
    products = MixedPrecisionPolicy(world.precision.dtype, torch.float32, cast_forward_inputs=False)
    for block in objective.model.model.layers:
        fully_shard(block, mesh=over, mp_policy=products, reshard_after_forward=True)
    fully_shard(objective, mesh=over, reshard_after_forward=False)
    register_fsdp_forward_method(objective, "per_token")


def replicated(objective: NextToken, world: World) -> nn.Module:
    """What to call for a loss whose gradients become those of all processes."""
    if world.size == 1 or world.shards > 1:
        return objective
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """A context for one micro-batch: copies of the model tell one another their gradients after a step's last one."""
    if isinstance(module, FSDPModule):
        module.set_requires_all_reduce(last)
    if isinstance(module, DistributedDataParallel) and not last:
        waiting: AbstractContextManager[None] = module.no_sync()
        return waiting
    return nullcontext()


@contextmanager
def gathered(objective: nn.Module, world: World) -> Iterator[None]:
    """A context in which the embedding and the head are whole, for what calls the model by itself."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    with world.precision.compute(world.device):
        yield
    objective.reshard()


class Deal:
    """Each process works on some of a stack of matrices, whole ones, and all have what came of it."""

    def __init__(self, world: World) -> None:
        """Parts are exchanged within a copy of the model; its replicas take different matrices."""
        self._shards, self._replicas = world.shards, world.replicas
        self._group, self._across = mesh(world)["shard"].get_group(), mesh(world)["replicate"].get_group()
        self._replica, self._place = divmod(world.rank, world.shards)

    def __call__(self, work: Work, parts: Tensor, beside: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """What `work` makes of matrices and of some columns `beside` them, given and returned as this process's rows of each.

        `parts` is N x own rows x columns of matrices with `rows` rows. Worked on are about N / processes matrices, so that the
        work shrinks with their number; sent and received are about twice the parts.
        """
        together = torch.cat([parts, beside], -1)
        each = -(-len(parts) // self._replicas)
        mine = together[self._replica * each : (self._replica + 1) * each]
        moved = self._exchanged(work, mine, parts.shape[-1], rows) if len(mine) else mine
        if self._replicas > 1:
            everyone = together.new_empty(each * self._replicas, *together.shape[1:])
            _all_gather(everyone, _padded(moved, each, 0).contiguous(), group=self._across)
            moved = everyone[: len(parts)]
        return moved[..., : parts.shape[-1]], moved[..., parts.shape[-1] :]

    def _exchanged(self, work: Work, parts: Tensor, columns: int, rows: int) -> Tensor:
        """The same within a copy of the model: rows become whole matrices, are worked on, and become rows again."""
        if self._shards == 1:
            return torch.cat(work(parts[..., :columns], parts[..., columns:]), -1)
        most, width = -(-rows // self._shards), parts.shape[-1]
        counts = [len(parts) // self._shards + (place < len(parts) % self._shards) for place in range(self._shards)]
        mine = counts[self._place]
        sent = _padded(parts, most, 1).contiguous()
        received = sent.new_empty(self._shards * mine, most, width)
        evenly = [mine] * self._shards
        dist.all_to_all_single(received, sent, evenly, counts, group=self._group)
        whole = (
            received.view(self._shards, mine, most, width).transpose(0, 1).reshape(mine, self._shards * most, width)[:, :rows]
        )
        moved = torch.cat(work(whole[..., :columns], whole[..., columns:]), -1) if mine else whole
        back = _padded(moved, self._shards * most, 1).view(mine, self._shards, most, width).transpose(0, 1)
        dist.all_to_all_single(sent, back.reshape(received.shape), counts, evenly, group=self._group)
        return sent[:, : parts.shape[1]]


def _padded(tensor: Tensor, length: int, dim: int) -> Tensor:
    """With zeros at the end of a dimension of three."""
    missing = length - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (2 - dim) + (0, missing)) if missing else tensor


def deal(world: World) -> muon.Deal:
    """How this world deals matrices out."""
    return Deal(world) if world.size > 1 else muon.alone

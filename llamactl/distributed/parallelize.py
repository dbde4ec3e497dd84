"""Distribute a model over the ranks of a run with PyTorch's DDP and FSDP2."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from llamactl.distributed.context import World
from llamactl.distributed.dtensor import split_sharded
from llamactl.model.objective import NextToken

# all_gather_single replaces all_gather_into_tensor after torch 2.12.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@cache
def device_mesh(world: World) -> DeviceMesh:
    """Build a mesh of shape (replicas, shards): one copy of the model per row, the same part of each weight per column."""
    return init_device_mesh(world.device.type, (world.replicas, world.shards), mesh_dim_names=("replicate", "shard"))


def apply_fsdp(objective: NextToken, world: World) -> None:
    """Shard every matrix over the ranks, in place: each block by itself, the embedding and the head together."""
    # Blocks are gathered in the dtype that autocast would cast them to. Residual stream, embedding, head, gains of norms and
    # sums of gradients stay fp32, as on one device: FSDP has one dtype for a block, so every rank holds its gains whole.
    mesh = device_mesh(world) if world.replicas > 1 else device_mesh(world)["shard"]
    policy = MixedPrecisionPolicy(world.precision.dtype, torch.float32, cast_forward_inputs=False)
    for block in objective.model.model.layers:
        vectors = {parameter for parameter in block.parameters() if parameter.ndim == 1}
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=vectors)
    # The backward pass starts with the head, so it is not freed in between.
    fully_shard(objective, mesh=mesh, reshard_after_forward=False)
    # FSDP hooks only `forward`; validation calls per_token.
    register_fsdp_forward_method(objective, "per_token")


def wrap_ddp(objective: NextToken, world: World) -> nn.Module:
    """Wrap a loss in DDP, if each of several ranks holds the full model; return the module to call."""
    if world.size == 1 or world.shards > 1:
        return objective
    # Gradients are views of the buckets that DDP communicates, not a second copy.
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def sync_gradients(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Return the context of a micro-batch; gradients are reduced over ranks only in the `last` one of a step."""
    if isinstance(module, FSDPModule):
        # HSDP only: the all-reduce over replicas; shards reduce-scatter each micro-batch, which keeps their memory low.
        module.set_requires_all_reduce(last)
    if isinstance(module, DistributedDataParallel) and not last:
        context: AbstractContextManager[None] = module.no_sync()
        return context
    return nullcontext()


def average_vectors(module: nn.Module, world: World) -> None:
    """Average over ranks the gradients of the parameters that FSDP leaves whole, in one exchange; a collective call."""
    _, whole = split_sharded(module.parameters()) if isinstance(module, FSDPModule) else ([], [])
    gradients = [parameter.grad for parameter in whole if parameter.grad is not None]
    if gradients:
        averages = world.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients])) / world.size
        torch._foreach_copy_(gradients, torch.split_with_sizes(averages, [len(gradient) for gradient in gradients]))


@contextmanager
def unsharded_root(objective: nn.Module, world: World) -> Iterator[None]:
    """Gather the embedding and the head in a context, for code that calls the model without FSDP's hooks."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    with world.precision.compute(world.device):
        yield
    objective.reshard()

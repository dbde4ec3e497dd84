"""Split Muon's orthogonalization over ranks: each updates some full matrices, and all receive the results."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from llamactl.distributed.context import World
from llamactl.distributed.parallelize import _all_gather, device_mesh
from llamactl.optim import muon
from llamactl.optim.muon import Work


class DistributedMuon:
    """Split a stack of matrices over ranks; each rank updates its share, and all receive the results."""

    def __init__(self, world: World) -> None:
        """Take the groups of a world: shards exchange rows of matrices, replicas take different matrices."""
        mesh = device_mesh(world)
        self._shards, self._replicas = world.shards, world.replicas
        self._shard_group, self._replica_group = mesh["shard"].get_group(), mesh["replicate"].get_group()
        self._replica, self._shard = divmod(world.rank, world.shards)

    def __call__(self, work: Work, parts: Tensor, extra: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Apply `work` to N matrices with `rows` rows and their `extra` columns, given and returned as this rank's rows.

        `parts` is N x local rows x columns, `extra` N x local rows x any. A rank updates about N / ranks matrices, and sends
        and receives about twice the size of its parts.
        """
        # In one tensor, so that the extra columns take no exchange of their own.
        joined = torch.cat([parts, extra], -1)
        per_replica = -(-len(parts) // self._replicas)
        local = joined[self._replica * per_replica : (self._replica + 1) * per_replica]
        result = self._update_shards(work, local, parts.shape[-1], rows) if len(local) else local
        if self._replicas > 1:
            # all-gather needs equal sizes, and the last replicas may have fewer matrices, or none.
            gathered = joined.new_empty(per_replica * self._replicas, *joined.shape[1:])
            _all_gather(gathered, _pad(result, per_replica, 0).contiguous(), group=self._replica_group)
            result = gathered[: len(parts)]
        return result[..., : parts.shape[-1]], result[..., parts.shape[-1] :]

    def _update_shards(self, work: Work, parts: Tensor, columns: int, rows: int) -> Tensor:
        """Apply `work` within one copy of the model: exchange rows for full matrices, update those, and exchange them back."""
        if self._shards == 1:
            return torch.cat(work(parts[..., :columns], parts[..., columns:]), -1)
        # FSDP gives the last shards fewer rows, or none: padded, all send blocks of one size.
        shards, chunk, width = self._shards, -(-rows // self._shards), parts.shape[-1]
        counts = [len(parts) // shards + (shard < len(parts) % shards) for shard in range(shards)]
        count = counts[self._shard]
        sent = _pad(parts, chunk, 1).contiguous()
        received = sent.new_empty(shards * count, chunk, width)
        received_counts = [count] * shards
        dist.all_to_all_single(received, sent, received_counts, counts, group=self._shard_group)
        # Received by shard, then by matrix: a full matrix is the rows of all shards, without the padding.
        full = received.view(shards, count, chunk, width).transpose(0, 1).reshape(count, shards * chunk, width)[:, :rows]
        result = torch.cat(work(full[..., :columns], full[..., columns:]), -1) if count else full
        returned = _pad(result, shards * chunk, 1).view(count, shards, chunk, width).transpose(0, 1)
        # `sent` has the shape of what comes back, and its content is no longer needed.
        dist.all_to_all_single(sent, returned.reshape(received.shape), counts, received_counts, group=self._shard_group)
        return sent[:, : parts.shape[1]]


def _pad(tensor: Tensor, length: int, dim: int) -> Tensor:
    """Pad a dimension of a 3-D tensor with zeros at its end."""
    missing = length - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (2 - dim) + (0, missing)) if missing else tensor


def build_muon_exchange(world: World) -> muon.MuonExchange:
    """Return the function that splits Muon's matrices over the ranks of a world; a world of one updates all itself."""
    return DistributedMuon(world) if world.size > 1 else muon.local_update

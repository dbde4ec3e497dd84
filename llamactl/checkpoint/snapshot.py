"""The tensors of a checkpoint, and the files that they become."""

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from llamactl.checkpoint import safetensors_io
from llamactl.checkpoint.format import INDEX, OPTIMIZER, WEIGHTS
from llamactl.distributed import dtensor
from llamactl.model.llama import Llama

# Bytes of weights per file: the default of save_pretrained in transformers 4.
LARGEST = 5_000_000_000


class Snapshot(NamedTuple):
    """Tensors of a checkpoint by their names in it."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def is_sharded(self) -> bool:
        """Check whether the tensors are sharded over ranks, so that all ranks must take part in saving."""
        return any(map(dtensor.is_sharded, self.weights.values()))

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors on this rank."""
        return sum(dtensor.local_shard(tensor).nbytes for tensors in self for tensor in tensors.values())

    def contents(self) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
        """Yield the name and the bytes of each file with tensors; a sharded tensor is gathered when it is reached."""
        yield from split_into_files(self.weights)
        yield OPTIMIZER, safetensors_io.serialize_tensors(self.optimizer)

    def gather(self) -> None:
        """Take part in the gathers of a checkpoint that rank 0 writes."""
        for _, content in self.contents():
            for part in content:
                # Freed before the next one is gathered.
                del part

    def is_finite(self) -> bool:
        """Check whether every number on this rank is finite."""
        # A norm is not finite if an element is not; fused norms and a single transfer instead of one per tensor.
        norms = torch._foreach_norm([dtensor.local_shard(tensor) for tensors in self for tensor in tensors.values()])
        return bool(torch.stack([norm.to(norms[0].device, non_blocking=True) for norm in norms]).isfinite().all())


def take_snapshot(model: Llama, optimizers: list[Optimizer]) -> Snapshot:
    """Take the tensors of a run, without copying them."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    states = (item for optimizer in optimizers for item in optimizer.state.items())
    # Optimizer state is named after its parameter: `model.norm.weight:exp_avg`.
    return Snapshot(weights, {f"{names[p]}:{key}": tensor for p, state in states for key, tensor in state.items()})


def split_into_files(weights: dict[str, Tensor]) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """Yield the name and the bytes of each file of weights: one, or several and their index.

    They equal those of transformers' `save_pretrained(max_shard_size=LARGEST)` byte for byte.
    """
    by_layer = {name: weights[name] for name in sorted(weights, key=_natural_key)}
    groups = safetensors_io.group_by_size(by_layer, LARGEST)
    if len(groups) == 1:
        yield WEIGHTS, safetensors_io.serialize_tensors(weights)
        return
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        yield name, safetensors_io.serialize_tensors(group)
    files = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
    elements, size = sum(map(Tensor.numel, weights.values())), sum(map(safetensors_io.tensor_bytes, weights.values()))
    index = {"metadata": {"total_parameters": elements, "total_size": size}, "weight_map": files}
    yield INDEX, [(json.dumps(index, indent=2, sort_keys=True) + "\n").encode()]


def _natural_key(name: str) -> list[str | int]:
    """Split a name into words and numbers, so that layer 10 sorts after layer 9."""
    return [int(word) if word.isdecimal() else word for word in name.split(".")]

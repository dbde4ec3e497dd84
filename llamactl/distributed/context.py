"""The ranks of a run, their devices, and the collectives by which they make the same decisions."""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from llamactl.config.schema import TrainConfig
from llamactl.distributed.launch import read_launch
from llamactl.errors import PeerFailed, UsageError, UserError
from llamactl.hardware.device import Precision, choose_device, choose_precision
from llamactl.hardware.gpus import Card

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One rank of a run and the device that it computes on. Without torchrun it is rank 0 of 1.

    Of all `size` ranks, `local_world_size` are on this machine. `shards` ranks hold one copy of the model, a part of each
    weight per rank, and there are `replicas` copies. For a GPU that is not in this machine, `memory_override` is its memory
    in bytes and `link_bandwidth` its bandwidth to other GPUs in bytes per second.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    size: int = 1
    local_world_size: int = 1
    shards: int = 1
    memory_override: int = 0
    link_bandwidth: float = 0.0

    @property
    def is_main(self) -> bool:
        """Check whether this is rank 0, the only one that prints and writes."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Return how many copies of the model there are."""
        return self.size // self.shards

    @property
    def parallel(self) -> str:
        """Name the parallel strategy: one, ddp, fsdp or hsdp."""
        if self.size == 1:
            return "one"
        return "ddp" if self.shards == 1 else "fsdp" if self.shards == self.size else "hsdp"

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.all_reduce_max(0)

    def all_reduce_max(self, *values: int) -> list[int]:
        """Return the maximum of each value over all ranks, so that all make the same decision."""
        if self.size == 1:
            return list(values)
        # On the CPU, by gloo: reading the result would otherwise wait for the GPU's queue.
        largest = torch.tensor(values)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def shard_evenly(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Return this rank's items, as many as every other rank's, and whether each counts: padding does not."""
        # Collectives need every rank in every round, so a rank without an item repeats the last one.
        rounds = -(-len(items) // self.size)
        indices = range(self.rank, rounds * self.size, self.size)
        return [(items[min(index, len(items) - 1)], index < len(items)) for index in indices]


def world_of_card(card: Card, precision: str = "auto") -> World:
    """Describe a run on one GPU that is not in this machine; raises UsageError for a precision without data sheet."""
    if precision == "fp32":
        why = "The table of cards has FLOP/s only for 16-bit formats."
        raise UsageError("--card does not work with --precision fp32.", why, "Add: --precision bf16")
    if precision == "bf16" and not card.has_bf16:
        raise UsageError("This card has no bf16.", "It is older than Ampere.", "Leave --precision out: it uses fp16.")
    if precision == "fp16":
        chosen = Precision(torch.float16, "as asked")
    else:
        chosen = Precision(torch.bfloat16 if card.has_bf16 else torch.float16, "by its data sheet")
    # The driver takes about half a gigabyte of the memory.
    return World(torch.device("cuda"), chosen, memory_override=int(card.memory - 0.5e9), link_bandwidth=card.link_bandwidth)


def broadcast_from_rank0(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and broadcast its result. If it raises UserError, other ranks exit quietly with the same code."""
    if not dist.is_initialized():
        return work()
    # The result, and the exit code of an error.
    message: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            message[0] = work()
        except UserError as error:
            dist.broadcast_object_list([None, error.code], device=torch.device("cpu"))
            raise
    dist.broadcast_object_list(message, device=torch.device("cpu"))
    if isinstance(message[1], int):
        # Its threads would abort the process during the exit.
        dist.destroy_process_group()
        raise SystemExit(message[1])
    return cast(T, message[0])


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the launch, if there is one; raises PeerFailed when another rank has ended."""
    if read_launch().size == 1:
        yield
        return
    try:
        _init_process_group()
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError for a lost connection.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        why = re.sub(r"^(\[.*?\] )*", "", str(error).strip().splitlines()[0]).partition(". ")[0]
        fix = "Its checkpoints are valid. Resume: llamactl train --resume"
        raise PeerFailed("Another process of this run is gone.", why, fix) from error
    dist.destroy_process_group()


def _init_process_group() -> None:
    """Initialize torch.distributed with gloo for the CPU and NCCL for GPUs."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if read_launch().local_world_size < read_launch().size:
        dist.init_process_group(backend)
        return
    # After a restart torchrun's store still has the addresses of the processes that ended, so each start gets a prefix of its
    # own (github.com/pytorch/pytorch/issues/167288; for several machines see docs/scale.md).
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    fresh_store = dist.PrefixStore(str(read_launch().restarts), store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=fresh_store, rank=rank, world_size=size)


def keep_freed_memory() -> None:
    """Set glibc to keep freed memory for reuse instead of returning it to the kernel."""
    # The kernel zeroes returned pages again for each step, which took three quarters of the time (docs/benchmarks.md).
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)


def init_device(train: TrainConfig) -> World:
    """Build the World of this process from its launch and the settings, with `shards` 1; `choose_sharding` may change that."""
    device = own_device(train.device)
    keep_freed_memory()
    # Denormal numbers, as tiny gradients are, make a CPU up to a hundred times slower.
    torch.set_flush_denormal(True)
    # TF32 for what remains in fp32 on a GPU.
    torch.set_float32_matmul_precision("high")
    # cuBLAS is deterministic only with a fixed workspace, set before its first use.
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not where it changes nothing: the call imports PyTorch's compiler, which takes longer than everything before.
    if train.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(train.deterministic)
    # Rank 0 decides for all: `auto` may be measured.
    precision = broadcast_from_rank0(lambda: choose_precision(train.precision, device))
    return World(device, precision, read_launch().rank, read_launch().size, read_launch().local_world_size)


def own_device(name: str) -> torch.device:
    """Return the device by name, or this rank's GPU under torchrun; raises UsageError if there are too few."""
    device = choose_device(name)
    if read_launch().size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if read_launch().local_rank >= count:
        why = f"{read_launch().local_world_size} processes were started on it, and each needs one."
        raise UsageError(f"This machine has {count} GPUs.", why, f"Start it with: torchrun --nproc-per-node={count}")
    torch.cuda.set_device(read_launch().local_rank)
    return torch.device("cuda", read_launch().local_rank)

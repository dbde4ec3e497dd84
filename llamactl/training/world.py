"""The processes that take part in a run, and what they tell one another; beside launch.py the only file that says "rank"."""

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

from llamactl.config import TrainConfig
from llamactl.errors import BadUsage, PeerLost, UserError
from llamactl.model.device import Precision, choose_device, choose_precision
from llamactl.training.launch import launch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One process of a run and what it computes on. A world of one is the usual case.

    Of all `size` processes, `neighbours` are on this machine. `shards` of them hold one copy of the model, a part of every
    weight each, and there are `replicas` of such groups. `room` is the device's memory in bytes and `link` what it sends to
    its neighbours, in bytes a second, where neither can be asked for, as of a card that is somewhere else.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    size: int = 1
    neighbours: int = 1
    shards: int = 1
    room: int = 0
    link: float = 0.0

    @property
    def leads(self) -> bool:
        """Whether this is the one process that speaks and writes."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """How many copies of the model there are."""
        return self.size // self.shards

    @property
    def parallel(self) -> str:
        """The name of the way in which processes share the work: one, ddp, fsdp or hsdp."""
        if self.size == 1:
            return "one"
        return "ddp" if self.shards == 1 else "fsdp" if self.shards == self.size else "hsdp"

    def most(self, *values: int) -> list[int]:
        """The largest of each value over all processes, so that they decide alike."""
        if self.size == 1:
            return list(values)
        largest = torch.tensor(values)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of each number over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Its own items, as many as any other process has, and whether each counts: one that evens them out does not."""
        rounds = -(-len(items) // self.size)
        places = range(self.rank, rounds * self.size, self.size)
        return [(items[min(place, len(items) - 1)], place < len(items)) for place in places]


def led(work: Callable[[], T]) -> T:
    """Let the leading process work something out, and all others have its answer; what ends it ends them, in silence."""
    if not dist.is_initialized():
        return work()
    answers: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            answers[0] = work()
        except UserError as error:
            dist.broadcast_object_list([None, error.code], device=torch.device("cpu"))
            raise
    dist.broadcast_object_list(answers, device=torch.device("cpu"))
    if isinstance(answers[1], int):
        dist.destroy_process_group()  # its threads else abort a process that ends
        raise SystemExit(answers[1])
    return cast(T, answers[0])


@contextmanager
def together() -> Iterator[None]:
    """Meet the other processes of the launch, if there are any; raises PeerLost when one of them is gone."""
    if launch().size == 1:
        yield
        return
    try:
        _meet()
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        why = re.sub(r"^(\[.*?\] )*", "", str(error).strip().splitlines()[0]).partition(". ")[0]
        raise PeerLost("Another process of this run is gone.", why, "Its checkpoints are good: train --resume") from error
    dist.destroy_process_group()


def _meet() -> None:
    """Find the others. On one machine torchrun keeps its notes when it starts again, with the addresses of those who are gone.

    (github.com/pytorch/pytorch/issues/167288; on several machines docs/scale.md says what helps.)
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if launch().neighbours < launch().size:
        dist.init_process_group(backend)
        return
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    own = dist.PrefixStore(str(launch().restarts), store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)


def keep_freed_memory() -> None:
    """Have glibc reuse what is freed instead of giving it back to the kernel, which fills it with zeros for the next step.

    Page faults took three quarters of the time of products this size (docs/benchmarks.md).
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)


def join(train: TrainConfig) -> World:
    """The world this process belongs to, from the launch and the run's settings; `plan.arranged` says how it shares."""
    device = own_device(train.device)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny gradients else cost a CPU a hundred times a product
    torch.set_float32_matmul_precision("high")
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic)
    precision = choose_precision(train.precision, device)
    return World(device, precision, launch().rank, launch().size, launch().neighbours)


def own_device(name: str) -> torch.device:
    """The device of a name, or where several processes are on this machine, this one's; raises BadUsage when there is none."""
    device = choose_device(name)
    if launch().size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if launch().place >= there:
        why = f"{launch().neighbours} processes were started on it; each takes one."
        raise BadUsage(f"This machine has {there} GPUs.", why, f"Start it with: torchrun --nproc-per-node={there}")
    torch.cuda.set_device(launch().place)
    return torch.device("cuda", launch().place)

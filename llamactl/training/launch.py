"""What torchrun says to each process that it starts. Without torch, so that it costs nothing to ask."""

import os
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Launch:
    """One process among those of a run; a process that nobody launched is alone.

    `place` is its number on its machine, where `neighbours` processes are. `job` is what torchrun calls all of them
    (--rdzv-id), empty where it has no name for them; `restarts` counts how often it has started them again.
    """

    rank: int = 0
    size: int = 1
    place: int = 0
    neighbours: int = 1
    job: str = ""
    restarts: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one process that speaks and writes."""
        return self.rank == 0


@cache
def launch() -> Launch:
    """The launch of this process, from the environment that torchrun gives it (docs.pytorch.org, "torchrun")."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    rank, size, place, neighbours, restarts = (int(os.environ.get(name, "0")) for name in names)
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return Launch(rank, size, place, neighbours or size, "" if job == "none" else job, restarts)

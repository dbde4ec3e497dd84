"""Launch parameters that torchrun passes to each process. Imports no torch, so that every command can use it."""

import os
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Launch:
    """Launch of one process; the defaults are those of a process that torchrun did not start.

    `local_rank` is its index among the `local_world_size` processes on its machine. `job` is torchrun's --rdzv-id, empty
    without one; `restarts` counts how often torchrun has restarted the processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    job: str = ""
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Check whether this is rank 0, the only one that prints and writes."""
        return self.rank == 0


@cache
def read_launch() -> Launch:
    """Read the launch of this process from torchrun's environment variables (docs.pytorch.org, "torchrun")."""
    # All three: RANK or WORLD_SIZE alone may come from elsewhere, and can't be joined without an address.
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    rank, size, local_rank, local_size, restarts = (int(os.environ.get(name, "0")) for name in names)
    # "none" is torchrun's default.
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return Launch(rank, size, local_rank, local_size or size, "" if job == "none" else job, restarts)

"""A plan beside others: the same run for other budgets, and shared by its processes in other ways."""

from dataclasses import dataclass, replace

from llamactl.artifacts import Dataset
from llamactl.config import Config
from llamactl.model.llama import count
from llamactl.training.forecast import Memory, Pace, duration, memory, pace
from llamactl.training.plan import Plan, plan, resolve, sharings
from llamactl.training.sizing import free_memory
from llamactl.training.traffic import Traffic, traffic
from llamactl.training.world import World


@dataclass(frozen=True)
class Way:
    """A way for processes to share a run, `ddp`, `fsdp`, or `hsdp:N` in groups of N; memory and traffic are those of one."""

    name: str
    chosen: bool
    memory: Memory
    memory_free: int
    fits: bool
    traffic: Traffic
    step: float
    tokens_per_second: float


def ways(config: Config, dataset: Dataset, world: World, rate: float) -> list[Way]:
    """What each way takes of an arranged world's devices, of `rate` FLOP/s each, for a config that is not resolved."""
    choices = sorted({*sharings(world), world.shards})
    return [_way(config, dataset, replace(world, shards=shards), rate, shards == world.shards) for shards in choices]


def _way(config: Config, dataset: Dataset, world: World, rate: float, chosen: bool) -> Way:
    resolved = resolve(config, dataset, world)
    needed, free, step = memory(resolved, world), free_memory(world), pace(resolved, world, rate).step
    speed = resolved.train.tokens_per_step / step
    return Way(way_name(world), chosen, needed, free, needed.needed <= free, traffic(resolved, world), step, speed)


def way_name(world: World) -> str:
    """The way in which a world's processes share a run, with the size of groups."""
    return f"{world.parallel}:{world.shards}" if world.parallel == "hsdp" else world.parallel


def budgets(config: Config, dataset: Dataset, world: World, rate: float, measured: Pace | None = None) -> list[Plan]:
    """Plans of a config that is not resolved: for its own budget, ten times that, and 20 tokens a parameter.

    `measured` is the pace of the first; the others are as much faster or slower than estimated as that.
    """
    own = resolve(config, dataset, world)
    faster = pace(own, world, rate).step / measured.step if measured else 1.0
    enough = 20 * count(own.model)
    plans = []
    for tokens in sorted({own.train.tokens, min(10 * own.train.tokens, max(enough, own.train.tokens)), enough}):
        train = config.train.model_copy(update={"tokens": tokens})
        resolved = resolve(config.model_copy(update={"train": train}), dataset, world)
        at = pace(resolved, world, faster * rate)
        made = plan(resolved, dataset, world, faster * rate)
        plans.append(replace(made, duration=duration(resolved, world, made.steps, Pace(at.step, (measured or at).start))))
    return plans

"""Plan alternatives of a run: other token budgets and other parallel strategies."""

from dataclasses import dataclass, replace

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.planning.communication import Traffic, estimate_traffic
from llamactl.planning.defaults import final_eval_tokens, worthwhile_epochs, worthwhile_tokens
from llamactl.planning.memory import free_memory
from llamactl.planning.memory_estimate import MemoryEstimate, estimate_memory
from llamactl.planning.plan import Plan, make_plan
from llamactl.planning.resolve import possible_shards, resolve_config
from llamactl.planning.step_time import StepTime, estimate_duration, estimate_step_time


@dataclass(frozen=True)
class Strategy:
    """A parallel strategy: `ddp`, `fsdp`, or `hsdp:N` in groups of N. Bytes are per rank, tokens per second of all ranks."""

    name: str
    chosen: bool
    memory: MemoryEstimate
    memory_free: int
    fits: bool
    traffic: Traffic
    step: float
    tokens_per_second: float


def parallel_strategies(config: Config, dataset: Dataset, world: World, rate: float) -> list[Strategy]:
    """Estimate each parallel strategy on a world's devices, of `rate` FLOP/s each, for a config that is not resolved."""
    # The chosen number of shards may be one that no strategy has by default, as with hsdp:N.
    choices = sorted({*possible_shards(world), world.shards})
    return [_strategy(config, dataset, replace(world, shards=shards), rate, shards == world.shards) for shards in choices]


def _strategy(config: Config, dataset: Dataset, world: World, rate: float, chosen: bool) -> Strategy:
    """Estimate the strategy of a world."""
    # Each strategy is resolved by itself: with more shards there is memory for a larger micro-batch.
    resolved = resolve_config(config, dataset, world)
    memory, free, step = estimate_memory(resolved, world), free_memory(world), estimate_step_time(resolved, world, rate).step
    speed = resolved.train.tokens_per_step / step
    return Strategy(
        strategy_name(world),
        chosen,
        memory,
        free,
        memory.required_bytes <= free,
        estimate_traffic(resolved, world),
        step,
        speed,
    )


def strategy_name(world: World) -> str:
    """Return the name of a world's parallel strategy, with the size of its groups for HSDP."""
    return f"{world.parallel}:{world.shards}" if world.parallel == "hsdp" else world.parallel


def plan_budgets(config: Config, dataset: Dataset, world: World, rate: float, measured: StepTime | None = None) -> list[Plan]:
    """Plan a config that is not resolved for its own budget, for ten times that, and for the worthwhile budget.

    `measured` is the step time of the config's own budget where it was measured; it scales the estimates of all budgets.
    """
    base = resolve_config(config, dataset, world)
    speedup = estimate_step_time(base, world, rate).step / measured.step if measured else 1.0
    worthwhile = worthwhile_tokens(num_params(base.model), dataset.info.total("train", "tokens"), worthwhile_epochs(base.train))
    plans = []
    # Ten times the budget is shown only up to the worthwhile one: beyond that, more tokens gain little.
    for tokens in sorted({base.train.tokens, min(10 * base.train.tokens, max(worthwhile, base.train.tokens)), worthwhile}):
        # Resolved again, as the tokens of a step follow from the budget.
        resolved = resolve_config(config.with_train(tokens=tokens), dataset, world)
        estimated = estimate_step_time(resolved, world, speedup * rate)
        step_time = StepTime(estimated.step, (measured or estimated).start)
        evaluated = final_eval_tokens(resolved.train, dataset.info)
        plan = make_plan(resolved, dataset, world, speedup * rate)
        plans.append(replace(plan, duration=estimate_duration(resolved, world, plan.steps, step_time, evaluated)))
    return plans

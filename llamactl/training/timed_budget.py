"""Choose what a time buys by timing real steps: what is estimated of a machine may be far off."""

import gc
import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import OutOfSpace, UsageError
from llamactl.hardware.memory import release_cached_memory
from llamactl.planning.resolve import resolve_config
from llamactl.planning.step_time import estimate_duration, estimate_step_time
from llamactl.planning.timed import choose_in_time
from llamactl.runs.run_dir import RunDir
from llamactl.training.benchmark import time_step
from llamactl.training.trainer import Trainer

# The fraction of the time that may be spent on steps which are thrown away, and their number. The first one compiles, which the
# run need not do again.
SPENT, WARM_UP, MOST_STEPS = 0.02, 1, 9


class Choice(NamedTuple):
    """A config with a budget, and the FLOP/s that its time follows from: `measured` in its steps, or the device's."""

    config: Config
    rate: float
    measured: bool


def choose_budget(configs: Iterable[Config], dataset: Dataset, world: World, rate: float, seconds: float) -> Choice:
    """Return what `choose_in_time` chooses, with the budget that its measured steps allow.

    Several processes, and steps that are long against the time, are not measured: the choice rests on `rate` alone.
    """
    started = time.monotonic()
    chosen = choose_in_time(configs, dataset, world, rate, seconds)
    config = resolve_config(chosen, dataset, world)
    expected = estimate_step_time(config, world, rate)
    steps = min(MOST_STEPS, int(SPENT * seconds / expected.step) - WARM_UP)
    if world.size > 1 or steps < 1:
        return Choice(chosen, rate, measured=False)
    try:
        measured = measure_step(config, dataset, world, steps)
        # The same shapes, so that nothing is compiled again, for which `choose_in_time` sets time aside.
        fixed = {"micro_batch": config.train.micro_batch, "compile": config.train.compile}
        left = seconds - (time.monotonic() - started) + estimate_duration(config, world, 0, expected).start
        actual = rate * expected.step / measured
        return Choice(choose_in_time([chosen.with_train(**fixed)], dataset, world, actual, left), actual, measured=True)
    except (OutOfSpace, UsageError):  # no memory for a step, which the run makes smaller, or no time left for one
        return Choice(chosen, rate, measured=False)


def measure_step(config: Config, dataset: Dataset, world: World, steps: int) -> float:
    """Return the median seconds of an optimizer step of a resolved config; raises OutOfSpace."""
    trainer = Trainer(config, dataset, RunDir.with_new_name(config.preset), world, rate=1.0)
    list(trainer.compile())
    taken = [sum(time_step(trainer)) for _ in range(WARM_UP + steps)]
    # Before the run builds its own.
    del trainer
    gc.collect()
    release_cached_memory(world.device)
    return statistics.median(taken[WARM_UP:])

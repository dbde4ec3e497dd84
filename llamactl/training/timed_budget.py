"""Choose what a time buys by timing real steps: what is estimated of a machine may be far off."""

import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import OutOfSpace
from llamactl.hardware.device import is_out_of_memory
from llamactl.hardware.memory import release_cached_memory
from llamactl.planning.memory import free_memory
from llamactl.planning.memory_estimate import estimate_memory
from llamactl.planning.resolve import resolve_config
from llamactl.planning.step_time import estimate_duration, estimate_step_time
from llamactl.planning.timed import choose_in_time
from llamactl.runs.run_dir import RunDir
from llamactl.training.benchmark import time_step
from llamactl.training.signals import StopRequests
from llamactl.training.trainer import Trainer

# The fraction of the time that may be spent on steps which are thrown away, and their number. The first one compiles, which the
# run need not do again.
SPENT, WARM_UP, MOST_STEPS = 0.02, 1, 9


class Choice(NamedTuple):
    """A config with a budget, and the FLOP/s that its time follows from: `measured` in its steps, or the device's."""

    config: Config
    rate: float
    measured: bool


def choose_budget(
    configs: Sequence[Config],
    dataset: Dataset,
    world: World,
    rate: float,
    seconds: float,
    requests: StopRequests | None = None,
) -> Choice:
    """Return what `choose_in_time` chooses, with the budget that its measured steps allow; a request to stop ends them.

    Several processes, steps that are long against the time, and models that do not fit are not measured: the choice rests
    on `rate` alone.
    """
    started = time.monotonic()
    chosen = choose_in_time(configs, dataset, world, rate, seconds)
    config = resolve_config(chosen, dataset, world)
    expected = estimate_step_time(config, world, rate)
    steps = min(MOST_STEPS, int(SPENT * seconds / expected.step) - WARM_UP)
    # What does not fit is refused once it is planned, with what would.
    fits = estimate_memory(config, world).required_bytes <= free_memory(world)
    if world.size > 1 or steps < 1 or not fits:
        return Choice(chosen, rate, measured=False)
    measured = measure_step(config, dataset, world, steps, requests or StopRequests())
    if measured is None:  # out of memory: the run makes its steps smaller
        return Choice(chosen, rate, measured=False)
    actual, left = rate * expected.step / measured, seconds - (time.monotonic() - started)
    asked = next(each for each in configs if each.preset == chosen.preset).with_train(compile=config.train.compile)
    # What `choose_in_time` sets aside for compiling is spent, unless other shapes are chosen now.
    start = estimate_duration(config, world, 0, expected).start
    again = choose_in_time([asked], dataset, world, actual, left + start)
    if not _has_shapes(resolve_config(again, dataset, world), config):
        again = choose_in_time([asked], dataset, world, actual, left)
    return Choice(again, actual, measured=True)


def _has_shapes(config: Config, compiled: Config) -> bool:
    """Check whether all micro-batches of a config have the shape of another one's, for which code is compiled."""
    train, size = config.train, compiled.train.micro_batch
    if bool(train.dropout) != bool(compiled.train.dropout):
        return False
    return train.micro_batch == size and train.tokens_per_step % (size * config.model.context) == 0


def measure_step(config: Config, dataset: Dataset, world: World, steps: int, requests: StopRequests) -> float | None:
    """Return the median seconds of an optimizer step of a resolved config, None where memory does not suffice for it."""
    try:
        taken = _time_steps(config, dataset, world, steps, requests)
    except (OutOfSpace, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        taken = []
    # Before the run builds its own; not within the `except`, where the error still holds the steps' memory.
    gc.collect()
    release_cached_memory(world.device)
    return statistics.median(taken) if taken else None


def _time_steps(config: Config, dataset: Dataset, world: World, steps: int, requests: StopRequests) -> list[float]:
    """Return the seconds of some steps of a new run after `WARM_UP` others, of one at least; raises OutOfSpace."""
    with closing(Trainer(config, dataset, RunDir.with_new_name(config.preset), world, rate=1.0)) as trainer:
        list(trainer.compile())
        taken = [sum(time_step(trainer)) for number in range(WARM_UP + steps) if number <= WARM_UP or not requests.stop]
    return taken[WARM_UP:]

"""Learning-rate schedules: pure functions of the steps done and the steps of the run to a fraction of the peak."""

import math
from collections.abc import Callable

from llamactl.config.schema import ScheduleConfig

# From modded-nanogpt. Without this warm-up the loss of short runs was 0.05 nats higher (docs/recipe.md).
FIRST_MOMENTUM = 0.85
MOMENTUM_WARMUP = 300  # steps


def cosine_decay(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Decay by half a cosine from the end of the warm-up to the minimum (Loshchilov & Hutter 2016, arXiv 1608.03983)."""
    warm = _warm_steps(steps, schedule)
    # A run may be all warm-up: then there are no steps to divide by.
    progress = (step - warm) / max(1, steps - warm)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def linear_decay(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Stay at the peak, then decay linearly to the minimum over the cooldown (Hägele et al. 2024, arXiv 2405.18392)."""
    remaining = (steps - step) / max(1.0, schedule.cooldown * steps)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * min(1.0, remaining)


SCHEDULES: dict[str, Callable[[int, int, ScheduleConfig], float]] = {"cosine": cosine_decay, "wsd": linear_decay}


def lr_multiplier(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Return the learning rate at `step` (0 is the first of `steps`) as a fraction of its peak: warm-up, then the schedule."""
    warm = _warm_steps(steps, schedule)
    # The + 1 keeps the first step from having a learning rate of 0, which would waste it.
    return (step + 1) / (warm + 1) if step < warm else SCHEDULES[schedule.name](step, steps, schedule)


def muon_momentum(step: int, target: float) -> float:
    """Return Muon's momentum at `step`: a linear warm-up to the target, as the first gradients are soon out of date."""
    progress = min(1.0, step / MOMENTUM_WARMUP)
    return min(target, FIRST_MOMENTUM) * (1 - progress) + target * progress


def _warm_steps(steps: int, schedule: ScheduleConfig) -> int:
    """Return the steps of the learning rate's warm-up."""
    return round(schedule.warmup * steps)

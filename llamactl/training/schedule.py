"""Learning rates over a run: pure functions of (steps done, steps in all) to a share of the peak."""

import math
from collections.abc import Callable

from llamactl.config import ScheduleConfig

FIRST_MOMENTUM = 0.85
MOMENTUM_WARMUP = 300  # steps


def cosine(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Half a cosine from the end of the warm-up down to the floor (Loshchilov & Hutter 2016, arXiv 1608.03983)."""
    warm = _warm_steps(steps, schedule)
    progress = (step - warm) / max(1, steps - warm)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Stay at the peak, then go down in a straight line (Hägele et al. 2024, arXiv 2405.18392)."""
    remaining = (steps - step) / max(1.0, schedule.cooldown * steps)
    return schedule.floor + (1 - schedule.floor) * min(1.0, remaining)


SCHEDULES: dict[str, Callable[[int, int, ScheduleConfig], float]] = {"cosine": cosine, "wsd": wsd}


def scale(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """The share of the peak rate at `step` (0 is the first of `steps`): a linear warm-up, then the schedule."""
    warm = _warm_steps(steps, schedule)
    return (step + 1) / (warm + 1) if step < warm else SCHEDULES[schedule.name](step, steps, schedule)


def momentum(step: int, target: float) -> float:
    """Muon's momentum, which starts with a shorter memory: the first gradients are soon out of date (modded-nanogpt)."""
    share = min(1.0, step / MOMENTUM_WARMUP)
    return min(target, FIRST_MOMENTUM) * (1 - share) + target * share


def _warm_steps(steps: int, schedule: ScheduleConfig) -> int:
    return round(schedule.warmup * steps)

"""Learning rates over a run."""

import pytest

from llamactl.config.schema import ScheduleConfig
from llamactl.optim.schedule import SCHEDULES, lr_multiplier


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 18, 1000])
def test_rates_rise_then_fall_to_the_floor(name: str, steps: int) -> None:
    schedule = ScheduleConfig.model_validate({"name": name, "min_lr_ratio": 0.1})
    rates = [lr_multiplier(step, steps, schedule) for step in range(steps)]
    top = rates.index(max(rates))
    assert top == round(0.05 * steps)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0.1 <= rate <= 1 or step < top for step, rate in enumerate(rates))
    assert rates[0] > 0


def test_cosine_is_half_way_down_half_way_through() -> None:
    schedule = ScheduleConfig(min_lr_ratio=0.0, warmup=0.0)
    assert lr_multiplier(0, 100, schedule) == 1
    assert lr_multiplier(50, 100, schedule) == pytest.approx(0.5)
    assert lr_multiplier(99, 100, schedule) < 0.001


def test_wsd_stays_then_falls_straight() -> None:
    schedule = ScheduleConfig(name="wsd", min_lr_ratio=0.0, warmup=0.1, cooldown=0.5)
    rates = [lr_multiplier(step, 100, schedule) for step in range(100)]
    assert rates[10:51] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)

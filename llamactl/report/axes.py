"""The x axes of loss curves: the field of the log, the label, how numbers are formatted and where the ticks are."""

from collections.abc import Callable
from typing import Any, Literal

from llamactl.units import show_count, show_time

Axis = Literal["step", "tokens", "time", "flops"]

# Each axis: the field of a log row, its label, and the format of its numbers.
AXES: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "step": ("step", "optimizer steps", lambda value: f"{value:,.0f}"),
    "tokens": ("tokens", "training tokens", show_count),
    "time": ("seconds", "training time", show_time),
    "flops": ("flops", "training FLOPs", lambda value: f"{value:.2g}".replace("e+", "e")),
}

# Distances between ticks of a time axis, in seconds: round numbers of seconds, minutes or hours.
MINUTE, HOUR = 60, 3600
APART = (
    1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
    HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR, 48 * HOUR,
)  # fmt: skip
MOST_MARKS = 7


def label_axis(x: Any, axis: Axis, end: float) -> None:
    """Set the label, the number format and the ticks of a matplotlib axis that ranges from 0 to `end`."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    x.set_label_text(AXES[axis][1])
    x.set_major_formatter(FuncFormatter(lambda value, _: AXES[axis][2](value)))
    fitting = [apart for apart in APART if end / apart <= MOST_MARKS]
    if axis == "time" and fitting:
        x.set_major_locator(MultipleLocator(fitting[0]))

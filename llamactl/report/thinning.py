"""Smooth and thin curves of any length: a picture has some thousand columns, a run may have millions of steps."""

import math
from collections.abc import Sequence

import numpy as np

from llamactl.runs.metrics_log import Columns

LARGEST = 1e30  # absolute value of a number that is drawn


def drawable_rows(columns: Columns) -> Columns:
    """Remove rows with values that are not finite, or so large that sums of them would not be finite."""
    kept = np.logical_and.reduce([np.abs(column) < LARGEST for column in columns.values()])
    return {name: column[kept] for name, column in columns.items()}


def moving_average(values: np.ndarray) -> np.ndarray:
    """Average about 4 % of the values around each; the window is shorter at the start, where a loss falls fast."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    reach = np.minimum(len(values) // 50, places // 4)
    starts, ends = places - reach, np.minimum(len(values) - 1, places + reach) + 1
    averages: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return averages


def keep_extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of about `most` values: the lowest and the highest of each interval, and both ends."""
    if len(values) <= most:
        return np.arange(len(values))
    stretch = math.ceil(2 * len(values) / most)
    whole = len(values) // stretch * stretch
    rows, starts = values[:whole].reshape(-1, stretch), np.arange(0, whole, stretch)
    kept = [[0, len(values) - 1], starts + rows.argmin(axis=1), starts + rows.argmax(axis=1)]
    if whole < len(values):
        kept.append([whole + values[whole:].argmin(), whole + values[whole:].argmax()])
    return np.unique(np.concatenate(kept))


def spread_evenly(values: Sequence[int], most: int) -> list[int]:
    """Select at most `most` (at least two) of the values, evenly spaced and including both ends."""
    last, kept = len(values) - 1, min(most, len(values))
    return [values[round(number * last / max(1, kept - 1))] for number in range(kept)]

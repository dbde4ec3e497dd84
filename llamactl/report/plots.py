"""Plot losses: a figure for paper and screen, and a text sketch for the terminal."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llamactl.errors import DataError, UsageError, suggest_nearest
from llamactl.report.axes import AXES, Axis, label_axis
from llamactl.report.baselines import Baseline
from llamactl.report.thinning import drawable_rows, keep_extremes, moving_average
from llamactl.runs.metrics_log import read_columns
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic

# Okabe & Ito's palette: distinct to colour-blind eyes, on paper and on dark screens.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

GREY = "#777777"  # colour of the baselines

# The loss of the first 2 % of a long run is so high that the rest would look flat; it may lie above the figure's range.
EARLY, HEADROOM = 0.02, 0.5

# Points of a curve in a picture, whose 1,440 columns of pixels show no more: the lowest and the highest of each interval.
MOST_POINTS = 3_000

FORMATS = (".png", ".svg", ".pdf")

Points = tuple[Sequence[float], Sequence[float]]  # x, loss


@dataclass(frozen=True)
class Curve:
    """The points of a run: the loss at each step, the validation loss, the places where it was resumed, and the spikes.

    The x coordinates are in the unit of the chosen axis; losses are in nats per token.
    """

    name: str
    x: np.ndarray
    loss: np.ndarray
    validation_x: tuple[float, ...]
    validation: tuple[float, ...]
    resumed: tuple[float, ...]
    spikes_x: tuple[float, ...] = ()
    spikes: tuple[float, ...] = ()

    @cached_property
    def smooth(self) -> np.ndarray:
        """Return the moving average of the loss over about 4 % of the run around each step."""
        return moving_average(self.loss)


def read_curve(run: RunDir, axis: Axis) -> Curve:
    """Read the curve of a run; raises DataError when no loss was logged yet."""
    field = AXES[axis][0]
    measured = dict.fromkeys(("step", "validation", "spike"), tuple({field, "loss"} - {"step"}))
    wanted = {**measured, "resumed": tuple({field} - {"step"})}
    found = read_columns(run.check_exists().metrics_path, wanted, run.path)
    rows = {kind: drawable_rows(columns) for kind, columns in found.items()}
    steps = rows["step"]

    def points(kind: str, value: str) -> tuple[float, ...]:
        return tuple(rows[kind][value].tolist())

    if not len(steps["loss"]):
        raise DataError(f"The run {run.path.name} has no losses yet.", "", "Watch it, or start one: llamactl train")
    return Curve(
        run.path.name, steps[field], steps["loss"],
        points("validation", field), points("validation", "loss"), points("resumed", field),
        points("spike", field), points("spike", "loss"),
    )  # fmt: skip


def is_visible(reference: Baseline, curves: Sequence[Curve], axis: Axis) -> bool:
    """Check whether a baseline has a line to draw before the runs end; a level always has one."""
    return not reference.rows or len(reference.rows_until(AXES[axis][0], _end(curves))[0]) > 1


def _end(curves: Sequence[Curve]) -> float:
    return max(float(curve.x[-1]) for curve in curves)


def draw_plot(curves: Sequence[Curve], axis: Axis, path: Path, references: Sequence[Baseline] = ()) -> None:
    """Draw the curves of runs, and the visible baselines, into a .png, .svg or .pdf file.

    Raises UsageError for another format, WriteFailed when the file can't be written.
    """
    kind = picture_format(path)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    end = _end(curves)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots()
        for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
            _draw_curve(axes, curve, colour, alone=len(curves) == 1)
        known = [reference.rows_until(AXES[axis][0], end) for reference in references]
        for reference, points in zip(references, known, strict=True):
            _draw_reference(axes, reference, points)
        label_axis(axes.xaxis, axis, end)
        axes.set_ylim(top=min(axes.get_ylim()[1], _top(curves, known, end)))
        _label(axes, curves)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind)
        pyplot.close(figure)
    atomic.write_file(path, drawn.getvalue())


def picture_format(path: Path) -> str:
    """Return the format given by a file name's suffix; raises UsageError for one that is not supported."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"A picture can't be {path.suffix or path.name!r}.", suggest_nearest(path.suffix, FORMATS))
    return path.suffix.lower().removeprefix(".")


STYLE: Any = {
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 200,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "llamactl",
}


def _draw_curve(axes: Any, curve: Curve, colour: str, alone: bool) -> None:
    label = "train" if alone else curve.name
    for values, style in (
        (curve.loss, {"alpha": 0.25, "linewidth": 0.8}),
        (curve.smooth, {"linewidth": 1.6, "label": label}),
    ):
        kept = keep_extremes(values, MOST_POINTS)
        axes.plot(curve.x[kept], values[kept], color=colour, **style)
    dots = {"marker": "o", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.8}
    darker = COLOURS[1] if alone else colour
    if curve.validation:
        axes.plot(
            curve.validation_x, curve.validation, color=darker, linewidth=0.9, linestyle=(0, (4, 2)), zorder=3,
            label="validation" if alone else None, **dots,
        )  # fmt: skip
        end = (curve.validation_x[-1], curve.validation[-1])
        place = {"textcoords": "offset points", "xytext": (7, 0), "va": "center", "annotation_clip": False}
        axes.annotate(f"{end[1]:.2f}", end, color=darker, fontsize=9, **place)
    if curve.spikes:
        axes.plot(
            curve.spikes_x, curve.spikes, color=darker, linestyle="none", marker="v", markersize=5, zorder=4,
            label="loss jumped" if alone else None,
        )  # fmt: skip
    for x in curve.resumed:
        axes.axvline(
            x, color=colour, linewidth=0.8, linestyle=":", label="resumed" if x == curve.resumed[0] and alone else None
        )


def _draw_reference(axes: Any, reference: Baseline, points: Points) -> None:
    """Draw a baseline in grey behind the runs: a curve dashed, a level dotted."""
    style = {"color": GREY, "linewidth": 1.2, "zorder": 1.5, "label": reference.label}
    if reference.rows:
        axes.plot(*points, linestyle=(0, (6, 2)), **style)
    else:
        axes.axhline(reference.level, linestyle=(0, (1, 1.5)), **style)


def _top(curves: Sequence[Curve], known: Sequence[Points], end: float) -> float:
    """Return the upper limit of the y axis.

    It leaves room for the legend above the median of each baseline and above all of the runs except their first 2 %.
    """
    late = np.concatenate([curve.loss[curve.x >= EARLY * end] for curve in curves])
    highest = max([late.max(), *(statistics.median(losses) for _, losses in known if losses)])
    return float(highest + HEADROOM * (highest - late.min() or 1))


def _label(axes: Any, curves: Sequence[Curve]) -> None:
    axes.set_ylabel("cross-entropy, nats per token")
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    axes.set_title(curves[0].name if len(curves) == 1 else "", loc="left", fontsize=10, color="#444444")
    axes.legend(loc="upper right")


# Braille dots by (column, row) of a cell; a terminal cell is two dots wide and four high.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def sketch_plot(curve: Curve, axis: Axis, width: int = 64, height: int = 12) -> str:
    """Draw the smoothed training loss as `width` by `height` characters of braille dots, plus labels; validation is omitted."""
    low, high = curve.smooth.min(), curve.smooth.max()
    first, last = float(curve.x[0]), float(curve.x[-1])
    cells = [[0x2800] * width for _ in range(height)]
    x, y = _filled(curve.x, curve.smooth, 2 * width)
    columns = np.rint((x - first) / ((last - first) or 1) * (2 * width - 1)).astype(int)
    rows = np.rint((high - y) / ((high - low) or 1) * (4 * height - 1)).astype(int)
    for row, column in set(zip(rows.tolist(), columns.tolist(), strict=True)):
        cells[row // 4][column // 2] |= DOTS[column % 2][row % 4]
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    lines = [f"{labels.get(number, ''):>7} ┤{''.join(map(chr, line))}" for number, line in enumerate(cells)]
    start, end = AXES[axis][2](first), AXES[axis][2](last)
    ruler = f"{'':7} └{'─' * width}"
    return "\n".join([*lines, ruler, f"{'':9}{start}{end:>{width - len(start)}}  {AXES[axis][1]}"])


def _filled(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate between the points, so that a short run is drawn as a continuous line too."""
    between = max(1, math.ceil(2 * most / len(x)))
    parts = np.arange(between) / between
    filled = (np.append((a[:-1, None] + np.diff(a)[:, None] * parts).ravel(), a[-1]) for a in (x, y))
    return next(filled), next(filled)

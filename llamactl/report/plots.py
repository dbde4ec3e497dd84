"""Plot losses: a figure for paper and screen, and a text sketch for the terminal."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llamactl.errors import DataError, UsageError, suggest_nearest
from llamactl.report.axes import AXES, Axis, label_axis
from llamactl.report.baselines import Baseline
from llamactl.runs.metrics_log import Columns, read_columns
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic

# Okabe & Ito's palette: distinct to colour-blind eyes, on paper and on dark screens.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

GREY = "#777777"  # colour of the baselines

# The loss of the first 2 % of a long run is so high that the rest would look flat; it may lie above the figure's range.
EARLY, HEADROOM = 0.02, 0.5

LARGEST = 1e30  # absolute value of a number that is drawn

FORMATS = (".png", ".svg", ".pdf")

Points = tuple[Sequence[float], Sequence[float]]  # x, loss


@dataclass(frozen=True)
class Curve:
    """The points of a run: the loss at each step, the validation loss, the places where it was resumed, and the spikes.

    The x coordinates are in the unit of the chosen axis; losses are in nats per token.
    """

    name: str
    x: tuple[float, ...]
    loss: tuple[float, ...]
    validation_x: tuple[float, ...]
    validation: tuple[float, ...]
    resumed: tuple[float, ...]
    spikes_x: tuple[float, ...] = ()
    spikes: tuple[float, ...] = ()

    @cached_property
    def smooth(self) -> list[float]:
        """Return the moving average of the loss over about 4 % of the run around each step.

        The window is shorter at the start, where the loss falls fast.
        """
        sums = [0.0, *accumulate(self.loss)]
        last = len(self.loss) - 1
        reach = [min(len(self.loss) // 50, step // 4) for step in range(len(self.loss))]
        spans = [(step - reach[step], min(last, step + reach[step]) + 1) for step in range(len(self.loss))]
        return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def read_curve(run: RunDir, axis: Axis) -> Curve:
    """Read the curve of a run; raises DataError when no loss was logged yet."""
    field = AXES[axis][0]
    measured = dict.fromkeys(("step", "validation", "spike"), tuple({field, "loss"} - {"step"}))
    wanted = {**measured, "resumed": tuple({field} - {"step"})}
    rows = {kind: _finite(columns) for kind, columns in read_columns(run.check_exists().metrics_path, wanted, run.path).items()}

    def points(kind: str, value: str) -> tuple[float, ...]:
        return tuple(rows[kind][value].tolist())

    if not points("step", "loss"):
        raise DataError(f"The run {run.path.name} has no losses yet.", "", "Watch it, or start one: llamactl train")
    return Curve(
        run.path.name, points("step", field), points("step", "loss"),
        points("validation", field), points("validation", "loss"), points("resumed", field),
        points("spike", field), points("spike", "loss"),
    )  # fmt: skip


def _finite(columns: Columns) -> Columns:
    """Remove rows with values that are not finite, or so large that sums of them would not be finite."""
    kept = np.logical_and.reduce([np.abs(column) < LARGEST for column in columns.values()])
    return {name: column[kept] for name, column in columns.items()}


def is_visible(reference: Baseline, curves: Sequence[Curve], axis: Axis) -> bool:
    """Check whether a baseline has a line to draw before the runs end; a level always has one."""
    return not reference.rows or len(reference.rows_until(AXES[axis][0], _end(curves))[0]) > 1


def _end(curves: Sequence[Curve]) -> float:
    return max(curve.x[-1] for curve in curves)


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
    axes.plot(curve.x, curve.loss, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(curve.x, curve.smooth, color=colour, linewidth=1.6, label=label)
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
    late = [loss for c in curves for x, loss in zip(c.x, c.loss, strict=True) if x >= EARLY * end]
    highest = max([*late, *(statistics.median(losses) for _, losses in known if losses)])
    return highest + HEADROOM * (highest - min(late) or 1)


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
    low, high = min(curve.smooth), max(curve.smooth)
    first, last = curve.x[0], curve.x[-1]
    cells = [[0x2800] * width for _ in range(height)]
    for x, y in zip(*_filled(curve.x, curve.smooth, 2 * width), strict=True):
        column = round((x - first) / ((last - first) or 1) * (2 * width - 1))
        row = round((high - y) / ((high - low) or 1) * (4 * height - 1))
        cells[row // 4][column // 2] |= DOTS[column % 2][row % 4]
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    lines = [f"{labels.get(number, ''):>7} ┤{''.join(map(chr, line))}" for number, line in enumerate(cells)]
    start, end = AXES[axis][2](first), AXES[axis][2](last)
    ruler = f"{'':7} └{'─' * width}"
    return "\n".join([*lines, ruler, f"{'':9}{start}{end:>{width - len(start)}}  {AXES[axis][1]}"])


def _filled(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Interpolate between the points, so that a short run is drawn as a continuous line too."""
    between = max(1, math.ceil(2 * most / len(x)))
    pairs = list(zip(x, y, strict=True))
    steps = [(a, b, k / between) for a, b in pairwise(pairs) for k in range(between)]
    filled = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b, t in steps] + [pairs[-1]]
    return [point[0] for point in filled], [point[1] for point in filled]

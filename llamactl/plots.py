"""Metrics become pictures: a figure for paper and screen, a sketch for the terminal."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from llamactl.artifacts import RunDir
from llamactl.axes import AXES, Axis, mark
from llamactl.errors import BadData, BadUsage, nearest
from llamactl.references import Reference

# Okabe & Ito's palette: distinct to colour-blind eyes, on paper and on dark screens.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

GREY = "#777777"  # of what runs are held against

# The first 2 % of a long run fall so far that the rest would look flat: they may start above the picture.
EARLY, HEADROOM = 0.02, 0.5

FORMATS = (".png", ".svg", ".pdf")

Points = tuple[Sequence[float], Sequence[float]]  # x, loss


@dataclass(frozen=True)
class Curve:
    """A run as points: x, loss at each step, loss on validation, where it was resumed, and where the loss jumped."""

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
        """The mean loss over some 4 % of the run around each step, and over less at its start, where the loss falls fast."""
        sums = [0.0, *accumulate(self.loss)]
        last = len(self.loss) - 1
        reach = [min(len(self.loss) // 50, step // 4) for step in range(len(self.loss))]
        spans = [(step - reach[step], min(last, step + reach[step]) + 1) for step in range(len(self.loss))]
        return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def read_curve(run: RunDir, axis: Axis) -> Curve:
    """The curve of a run; raises BadData when nothing was logged yet."""
    rows = sorted(run.existing().rows(), key=lambda row: float(row["step"]))
    field = AXES[axis][0]

    def points(kind: str, value: str) -> tuple[float, ...]:
        return tuple(float(row[value]) for row in rows if row["kind"] == kind)

    if not points("step", "loss"):
        raise BadData(
            f"The run {run.path.name} has no losses yet.", "", "Watch it, or start one: llamactl train --tokens 256000"
        )
    return Curve(
        run.path.name, points("step", field), points("step", "loss"),
        points("validation", field), points("validation", "loss"), points("resumed", field),
        points("spike", field), points("spike", "loss"),
    )  # fmt: skip


def in_sight(reference: Reference, curves: Sequence[Curve], axis: Axis) -> bool:
    """Whether a reference has a line to be drawn before the runs end; a level always has."""
    return not reference.rows or len(reference.until(AXES[axis][0], _end(curves))[0]) > 1


def _end(curves: Sequence[Curve]) -> float:
    return max(curve.x[-1] for curve in curves)


def draw(curves: Sequence[Curve], axis: Axis, path: Path, references: Sequence[Reference] = ()) -> None:
    """Draw the curves, and the references in sight that they are held against, into a .png, .svg or .pdf file."""
    if path.suffix not in FORMATS:
        raise BadUsage(f"A picture can't be {path.suffix or path.name!r}.", nearest(path.suffix, FORMATS))
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    end = _end(curves)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots()
        for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
            _draw_curve(axes, curve, colour, alone=len(curves) == 1)
        known = [reference.until(AXES[axis][0], end) for reference in references]
        for reference, points in zip(references, known, strict=True):
            _draw_reference(axes, reference, points)
        mark(axes.xaxis, axis, end)
        axes.set_ylim(top=min(axes.get_ylim()[1], _top(curves, known, end)))
        _label(axes, curves)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        pyplot.close(figure)


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


def _draw_reference(axes: Any, reference: Reference, points: Points) -> None:
    """In grey, below the runs: a curve dashed, a level dotted."""
    style = {"color": GREY, "linewidth": 1.2, "zorder": 1.5, "label": reference.label}
    if reference.rows:
        axes.plot(*points, linestyle=(0, (6, 2)), **style)
    else:
        axes.axhline(reference.level, linestyle=(0, (1, 1.5)), **style)


def _top(curves: Sequence[Curve], known: Sequence[Points], end: float) -> float:
    """Where the picture ends above: room for the legend over half of each reference and all but the start of the runs."""
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


def sketch(curve: Curve, axis: Axis, width: int = 64, height: int = 12) -> str:
    """The smoothed loss in braille dots, `width` by `height` characters and its labels; val is not drawn."""
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
    """Points between the points, so that a short run is a line as well."""
    between = max(1, math.ceil(2 * most / len(x)))
    pairs = list(zip(x, y, strict=True))
    steps = [(a, b, k / between) for a, b in pairwise(pairs) for k in range(between)]
    filled = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b, t in steps] + [pairs[-1]]
    return [point[0] for point in filled], [point[1] for point in filled]

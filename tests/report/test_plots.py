"""Curves, pictures and sketches."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llamactl.config.schema import Config
from llamactl.errors import DataError, UsageError
from llamactl.report.baselines import Baseline
from llamactl.report.plots import COLOURS, FORMATS, draw_plot, is_visible, read_curve, sketch_plot
from llamactl.runs.run_dir import RunDir


def write(run: RunDir, rows: list[dict[str, Any]]) -> RunDir:
    run.start(Config(), {})
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def row(kind: str, step: int, loss: float) -> dict[str, Any]:
    return {"kind": kind, "step": step, "tokens": step * 100, "flops": step * 1e9, "seconds": step * 2.0, "loss": loss}


@pytest.fixture
def run(home: Path) -> RunDir:
    steps = [row("step", step, 9 - step / 20 + (step % 3) / 10) for step in range(1, 101)]
    return write(
        RunDir.from_name("a"), [*steps, row("validation", 50, 7.0), row("validation", 100, 4.5), {**row("resumed", 60, 0)}]
    )


@pytest.mark.parametrize(("axis", "last"), [("step", 100), ("tokens", 10_000), ("time", 200), ("flops", 1e11)])
def test_a_curve_is_read_against_any_axis(run: RunDir, axis: Any, last: float) -> None:
    curve = read_curve(run, axis)
    assert (len(curve.loss), curve.x[-1], curve.validation) == (100, last, (7.0, 4.5))
    assert curve.resumed == (last * 0.6,)


def test_jumps_of_the_loss_are_marked(home: Path, tmp_path: Path) -> None:
    steps = [row("step", step, 8.0 if step == 7 else 4.0) for step in range(1, 11)]
    runs = [write(RunDir.from_name("calm"), steps), write(RunDir.from_name("jumpy"), [*steps, row("spike", 7, 8.0)])]
    curves = [read_curve(run, "tokens") for run in runs]
    assert (curves[1].spikes_x, curves[1].spikes) == ((700,), (8.0,))
    for curve in curves:
        draw_plot([curve], "tokens", tmp_path / f"{curve.name}.svg")
    said = ["loss jumped" in (tmp_path / f"{name}.svg").read_text() for name in ("calm", "jumpy")]
    assert said == [False, True]


def test_smoothing_keeps_level_and_start(run: RunDir) -> None:
    curve = read_curve(run, "step")
    assert curve.smooth[0] == curve.loss[0]
    assert curve.smooth[-1] == pytest.approx(sum(curve.loss[-3:]) / 3, abs=0.1)
    roughness = [sum(abs(b - a) for a, b in itertools.pairwise(line)) for line in (curve.loss, curve.smooth)]
    assert roughness[1] < roughness[0] / 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_pictures_are_what_their_name_says(run: RunDir, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"loss{suffix}"
    draw_plot([read_curve(run, "tokens")], "tokens", path)
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


def test_curves_are_in_the_picture(run: RunDir, tmp_path: Path) -> None:
    second = write(RunDir.from_name("b"), [row("step", step, 8 - step / 20) for step in range(1, 101)])
    path = tmp_path / "loss.png"
    draw_plot([read_curve(run, "tokens"), read_curve(second, "tokens")], "tokens", path)
    colours = {pixel for _, pixel in Image.open(path).convert("RGB").getcolors(1 << 24)}  # type: ignore[union-attr]
    for colour in COLOURS[:2]:
        assert tuple(bytes.fromhex(colour[1:])) in colours


def test_svg_names_runs_and_axes(run: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "loss.svg"
    draw_plot([read_curve(run, "time")], "time", path)
    text = path.read_text()
    for word in ("training time", "nats per token", "validation", "resumed", "4.50"):
        assert word in text


def test_other_formats_are_refused(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.pdf, \.png, \.svg"):
        draw_plot([read_curve(run, "step")], "step", tmp_path / "loss.xlsx")


def test_a_run_without_losses_says_so(home: Path) -> None:
    with pytest.raises(DataError, match="no losses yet"):
        read_curve(write(RunDir.from_name("c"), []), "step")


@pytest.mark.parametrize("points", [1, 2, 18, 5000])
def test_a_sketch_falls_from_left_to_right(home: Path, points: int) -> None:
    run = write(RunDir.from_name("d"), [row("step", step, 10 - 5 * step / points) for step in range(1, points + 1)])
    lines = sketch_plot(read_curve(run, "tokens"), "tokens", width=40, height=8).splitlines()
    assert len(lines) == 10
    assert all(len(line) <= 70 for line in lines)
    drawn = [[column for column, mark in enumerate(line[9:]) if 0x2800 < ord(mark) <= 0x28FF] for line in lines[:8]]
    assert drawn[0][0] == 0
    if points > 1:
        assert drawn[-1][-1] == 39
        assert sum(map(len, drawn)) >= 40


def svg(path: Path, runs: list[RunDir], axis: Any, *references: Baseline) -> str:
    draw_plot([read_curve(run, axis) for run in runs], axis, path, references)
    return path.read_text()


def known(run: RunDir, label: str) -> Baseline:
    """The curve of a run as a reference."""
    rows = [row for row in run.rows() if row["kind"] == "step"]
    return Baseline(label, 0.0, tuple({"step": row["step"], "flops": row["flops"], "loss": row["loss"]} for row in rows))


def test_references_are_grey_and_named_and_levels_are_in_the_picture(run: RunDir, tmp_path: Path) -> None:
    plain = svg(tmp_path / "plain.svg", [run], "step")
    held = svg(tmp_path / "held.svg", [run], "step", known(run, "a curve"), Baseline("a level", 1.0))
    for words in ("a curve", "a level"):
        assert words in held
    assert plain.count("#777777") == 0
    assert held.count("#777777") >= 4  # each line, in the picture and in the legend
    assert held.index("#777777") < held.index(COLOURS[0].lower())  # behind the runs


@pytest.mark.parametrize(("starts", "seen"), [(1, True), (99, True), (100, False), (101, False)])
def test_a_reference_is_in_sight_when_there_is_a_line_before_the_run_ends(run: RunDir, starts: int, seen: bool) -> None:
    rows = tuple({"step": step, "flops": step * 1e9, "loss": 5.0} for step in range(starts, starts + 50))
    for axis in ("step", "flops"):
        assert is_visible(Baseline("", 5.0, rows), [read_curve(run, axis)], axis) == seen
    assert is_visible(Baseline("", 5.0), [read_curve(run, "step")], "step")


def test_a_reference_ends_where_the_runs_do(run: RunDir) -> None:
    assert known(run, "").rows_until("step", 3.5)[0] == [1, 2, 3]
    assert len(known(run, "").rows_until("flops", 7e9)[1]) == 7


def test_the_steep_start_of_a_long_run_does_not_flatten_the_rest(home: Path, tmp_path: Path) -> None:
    losses = {
        "steep": [100 / step + 3 - step / 1000 for step in range(1, 1001)],
        "even": [9 - step / 250 for step in range(1000)],
    }
    for name, values in losses.items():
        run = write(RunDir.from_name(name), [row("step", step, loss) for step, loss in enumerate(values, 1)])
        svg(tmp_path / f"{name}.svg", [run], "step")
    labels = {name: re.findall(r">(\d+)(?:\.\d)?</text>", (tmp_path / f"{name}.svg").read_text()) for name in losses}
    assert max(float(label) for label in labels["steep"] if len(label) < 3) < 20  # of 103
    assert "9" in labels["even"]


def test_times_are_marked_where_a_clock_would(home: Path, tmp_path: Path) -> None:
    run = write(RunDir.from_name("timed"), [row("step", step, 5.0) for step in range(1, 3601)])
    assert {"30m 00s", "1h 00m", "1h 30m", "2h 00m"} <= set(
        re.findall(r">([^<>]+)</text>", svg(tmp_path / "t.svg", [run], "time"))
    )


def test_marks_of_flops_are_told_apart(home: Path, tmp_path: Path) -> None:
    run = write(RunDir.from_name("flops"), [row("step", step, 5.0) for step in range(1, 1401)])
    marks = [text for text in re.findall(r">([\d.e]+)</text>", svg(tmp_path / "f.svg", [run], "flops")) if "e" in text]
    assert len(marks) >= 4
    assert len(marks) == len(set(marks))

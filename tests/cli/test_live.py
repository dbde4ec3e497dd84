"""The live screen: it fits whatever the terminal is, from events alone, and in a real terminal it is in one piece."""

import io
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from llamactl.cli.ui.live import MOST_POINTS, Course, View
from llamactl.training.events import Replayed, Resumed, Sampled, Saved, Stepped, Validated
from llamactl.training.signals import StopRequests
from tests.cli.test_cli import TINY, run
from tests.conftest import make_dataset

COURSE = Course("mine: tiny on addresses", steps=1000, tokens_per_step=256, save_every=100, seconds=2.0)


def stepped(step: int, speed: float = 1000.0) -> Stepped:
    return Stepped(step, 256 * step, 1e9 * step, step / 4, 9.0 - step / 200, 0.01, 0.5, speed, 0.4, 10**9)


def view(steps: int = 250) -> View:
    made = View(COURSE)
    for step in range(1, steps + 1):
        made.on(stepped(step))
    now = (steps, 256 * steps, 1e9, 60.0)
    made.on(Validated(*now, 5.25, 1.75))
    made.on(Sampled(*now, "The people\x1b[2J", "of\nthese [bold]States " * 20))
    made.on(Saved(*now, "runs/mine/checkpoints/step"))
    return made


def drawn(made: View, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(made, height=height)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(40, 12), (60, 16), (80, 24), (200, 50), (300, 10), (45, 100)])
def test_it_fits_every_terminal(width: int, height: int) -> None:
    lines = drawn(view(), width, height)
    assert len(lines) < height
    assert max(map(cell_len, lines)) < width
    text = "\n".join(lines)
    assert "\x1b" not in text
    for fact in ("mine: tiny on addresses", "step 250 of 1,000", "loss", "checkpoint"):
        assert fact in text


def test_it_says_what_is_known_with_units() -> None:
    text = "\n".join(drawn(view(), 110, 40))
    for fact in (
        "25%", "3m 12s left", "7.750 nats per token", "1k tokens/s", "MFU 40%", "1 GB of memory",
        "5.250 nats per token   1.750 bits per byte   at step 250", "step 250, the next at 300", "The people\\x1b[2J[…]of⏎",
    ):  # fmt: skip
        assert fact in text, text
    assert "⠀" in text  # the chart
    nothing = "\n".join(drawn(View(COURSE), 80, 24))
    assert "33m 20s left" in nothing  # as it was planned
    assert "none yet, the next at 100" in nothing


def test_what_happens_before_the_first_step_is_told() -> None:
    made = View(replace(COURSE, start=20.0))
    assert "Compiling: the first step comes after about 20s." in "\n".join(drawn(made, 100, 30))
    made.on(stepped(1))
    assert "Compiling" not in "\n".join(drawn(made, 100, 30))


def test_a_wish_to_stop_is_seen_until_it_is_done() -> None:
    wishes = StopRequests()
    made = View(COURSE, wishes)
    assert "Stopping" not in "\n".join(drawn(made, 120, 24))
    wishes.stop = 2
    assert "Stopping after this step" in "\n".join(drawn(made, 120, 24))


def test_a_long_run_is_thinned_and_one_that_goes_back_is_drawn_once() -> None:
    made = View(COURSE)
    for step in [*range(1, 10 * MOST_POINTS), *range(500, 1000)]:
        made.on(stepped(step))
    made.on(Resumed(0, 0, 0.0, 0.0))
    made.on(Replayed(0, 0, 0.0, 0.0, 1, 0, 0.0))
    steps = [step for step, _ in made._points]
    assert steps == sorted(set(steps))
    assert len(steps) <= MOST_POINTS
    assert steps[-1] < 1000


@pytest.mark.slow
def test_watching_a_run_that_is_over_tells_it_and_ends(home: Path, corpus: Path) -> None:
    make_dataset(home / "data" / "addresses", corpus)
    run(f"train --tokens 4096 --run a {TINY}")
    (home / "runs" / "a" / "metrics.jsonl").open("a").write('{"kind": "unheard of", "step": 9}\n{"kind": "step"')
    done = run("watch a")
    for words in ("validation", "nats per token", "a: done, step 8 of 8.", "llamactl plot-loss a"):
        assert words in done.stderr
    assert "\x1b" not in done.stderr
    assert len(run("watch a --json").stdout.splitlines()) >= 8


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., str]]:
    """A real terminal of tmux's; called with a command to tmux, it gives back what is on the screen then."""
    if not shutil.which("tmux"):
        pytest.skip("no tmux here")
    tmux = ["tmux", "-S", str(home / "socket"), "-f", os.devnull]
    # Processes of pytest-xdist have COLUMNS, which would hide the width of this terminal.
    unwanted = ("NO_COLOR", "COLUMNS", "LINES")
    surroundings = {name: value for name, value in os.environ.items() if name not in unwanted}
    surroundings |= {"OMP_NUM_THREADS": "1", "PS1": "$ ", "LC_ALL": "C.UTF-8", "TERM": "screen"}

    def do(*words: str) -> str:
        subprocess.run([*tmux, *words], check=True, env=surroundings)
        return subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout

    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", "bash --norc"], check=True, env=surroundings)
    yield do
    subprocess.run([*tmux, "kill-server"], check=False)


def wait_for(terminal: Callable[..., str], shown: Callable[[str], bool], seconds: float = 300.0) -> str:
    """Wait until a terminal shows something; return its whole screen."""
    deadline = time.monotonic() + seconds
    while not shown(screen := terminal("send-keys", "")):
        assert time.monotonic() < deadline, screen
        time.sleep(0.3)
    return screen


@pytest.mark.slow
def test_a_real_terminal_shows_it_in_one_piece_and_survives_resizing(
    terminal: Callable[..., str], home: Path, corpus: Path
) -> None:
    make_dataset(home / "data" / "addresses", corpus)
    llamactl = f"{shlex.quote(sys.executable)} -m llamactl"
    command = f"{llamactl} train --tokens 2M --yes --run a {TINY} --set train.save_every=40 --set train.eval_every=40"
    terminal("send-keys", f"cd {shlex.quote(str(Path.cwd()))}; clear; {command}", "Enter")
    wait_for(terminal, lambda screen: "validation" in screen)

    def whole(width: int, height: int) -> None:
        terminal("resize-window", "-x", str(width), "-y", str(height))
        time.sleep(1.5)

        def is_drawn(screen: str) -> bool:
            """Whether a busy machine, which draws late, has drawn it in this size."""
            lines = screen.splitlines()
            return screen.startswith("a: tiny on addresses") and max(map(cell_len, lines)) < width and screen.count("━ ") == 1

        lines = wait_for(terminal, is_drawn).splitlines()
        text = "\n".join(lines)
        assert lines[0].startswith("a: tiny on addresses")
        assert max(map(cell_len, lines)) < width
        for fact in ("left", "loss", "speed", "validation", "checkpoint", "the next at"):
            assert text.count(f"{fact} ") == 1 or fact in ("left", "the next at", "validation"), text
        assert text.count("━ ") == 1
        assert text.count(" ┤") == text.count("└") * text.count(" ┤")  # one chart, with its axis

    for width, height in ((80, 24), (200, 50), (60, 16), (200, 50), (80, 24)):
        whole(width, height)
    watching = subprocess.Popen(
        [sys.executable, "-m", "llamactl", "watch", "a"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    terminal("send-keys", "C-c")
    _, said = watching.communicate(timeout=90)  # it ends when the run does
    assert "stopped" in said
    after = wait_for(terminal, lambda screen: "llamactl train --resume a" in screen)
    assert "is safe" in after
    assert "validation" in after  # the lines that were on the live screen are left on this one

"""Trackers show what the log has, and nothing that they do touches the run."""

import importlib.machinery
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from llamactl import install_command
from llamactl.config.schema import Config
from llamactl.errors import UsageError
from llamactl.metrics import tracker_thread
from llamactl.metrics.monitor import record_events
from llamactl.metrics.tracker_thread import open_trackers, track_events
from llamactl.metrics.trackers import TRACKERS, event_scalars
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Degraded, Event, Resumed, RolledBack, Sampled, Stepped, Validated

Calls = list[tuple[str, Any]]


def stepped(step: int, loss: float = 2.5) -> Stepped:
    return Stepped(step, step * 10, step * 1e9, step / 2, loss, 0.1, 1.5, 1000.0, 0.25, 7)


def course(start: int, end: int) -> Iterator[Event]:
    """Steps, the even ones with a validation and a sample."""
    for step in range(start, end + 1):
        yield stepped(step, loss=10 / step)
        if step % 2 == 0:
            yield Validated(step, step * 10, step * 1e9, step / 2, 11 / step, 1 / step)
            yield Sampled(step, step * 10, step * 1e9, step / 2, "The <b>", f" end {step}\n# of it")


@pytest.fixture
def run(home: Path) -> RunDir:
    folder = RunDir.from_name("a")
    folder.start(Config(), {})
    return folder


def follow(names: str, run: RunDir, events: Iterator[Event]) -> list[Event]:
    return list(track_events(events, open_trackers(names.split(","), run, Config().model_dump(mode="json"))))


def curve(run: RunDir, name: str) -> dict[int, float]:
    """A curve as TensorBoard reads it, each step once."""
    points = [(event.step, event.value) for event in board(run).Scalars(name)]
    assert len(points) == len(dict(points))
    return dict(points)


def board(run: RunDir) -> Any:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(run.path / "tensorboard")).Reload()


def test_figures_by_name() -> None:
    assert event_scalars(stepped(3)) == {
        "tokens": 30,
        "train/loss": 2.5,
        "train/lr": 0.1,
        "train/grad_norm": 1.5,
        "train/tokens_per_second": 1000.0,
        "train/mfu": 0.25,
        "train/memory": 7,
    }
    assert event_scalars(Validated(3, 30, 1.0, 1.0, 4.0, 2.0)) == {
        "tokens": 30,
        "validation/loss": 4.0,
        "validation/bits_per_byte": 2.0,
    }
    assert event_scalars(Sampled(3, 30, 1.0, 1.0, "a", "b")) == {}


def test_tensorboard_shows_what_the_log_has(run: RunDir) -> None:
    assert follow("tensorboard", run, record_events(course(1, 6), run)) == list(course(1, 6))
    rows = run.rows()
    for kind, group, field in (
        ("step", "train", "loss"),
        ("step", "train", "lr"),
        ("validation", "validation", "bits_per_byte"),
    ):
        logged = {row["step"]: row[field] for row in rows if row["kind"] == kind}
        assert curve(run, f"{group}/{field}") == pytest.approx(logged)
    (two, *_) = board(run).Tensors("samples/The <b>/text_summary")
    assert two.tensor_proto.string_val == [b"    The <b> end 2\n    # of it"]
    (config,) = board(run).Tensors("config/text_summary")
    assert b'"tokens_per_step"' in config.tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("begins", "left"),
    [([Resumed(4, 40, 1.0, 1.0)], 4), ([], 0), ([Resumed(2, 20, 1.0, 1.0), stepped(3), RolledBack(2, 20, 1.0, 1.0, 3)], 2)],
)
def test_steps_that_are_done_again_are_once_in_tensorboard(run: RunDir, begins: list[Event], left: int) -> None:
    """After a kill that came later than the checkpoint, before any, or when a run went back."""
    follow("tensorboard", run, course(1, 6))
    follow("tensorboard", run, iter([*begins, *[stepped(step, loss=0.5) for step in range(left + 1, 8)]]))
    assert curve(run, "train/loss") == pytest.approx({step: 10 / step if step <= left else 0.5 for step in range(1, 8)})
    assert max(curve(run, "validation/loss"), default=0) <= max(left, 0)


def test_a_killed_run_leaves_what_tensorboard_reads(run: RunDir) -> None:
    follow("tensorboard", run, course(1, 6))
    (path,) = (run.path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    follow("tensorboard", run, iter([Resumed(5, 50, 1.0, 1.0), stepped(6)]))
    assert list(curve(run, "train/loss")) == [1, 2, 3, 4, 5, 6]


class Fake:
    """A tracker's package that writes down what is asked of it, and fails where it is told to."""

    def __init__(self, fails: str = "", how: Callable[[], Any] = lambda: None) -> None:
        self.calls: Calls = []
        self._fails, self._how = fails, how

    def call(self, name: str, result: Any = None) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, options or arguments))
            print(f"{name} says something")
            if name == self._fails:
                self._how()
            return result

        return called

    def install(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        module = cast(Any, ModuleType(name))
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init = self.call("init", SimpleNamespace(log=self.log, finish=self.call("finish")))
        module.login = self.call("login", False)
        module.Settings = dict
        module.Html = module.Markdown = str
        monkeypatch.setitem(sys.modules, name, module)

    def log(self, shown: dict[str, Any], step: int) -> None:
        self.call("log")(shown=shown, step=step)

    def asked(self, name: str) -> list[Any]:
        return [options for called, options in self.calls if called == name]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings."""
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING", "TRACKIO_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_get_the_same(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fake = Fake()
    fake.install(monkeypatch, name)
    assert follow(name, run, course(1, 4)) == list(course(1, 4))
    (asked,) = fake.asked("init")
    assert (asked["project"], asked["name"], asked["resume"]) == ("llamactl", "a", "allow")
    assert asked["config"]["optim"]["name"] == "muon"
    logged = fake.asked("log")
    assert [entry["step"] for entry in logged] == [1, 2, 2, 2, 3, 4, 4, 4]
    assert [entry["shown"] for entry in logged[:3]] == [event_scalars(event) for event in list(course(1, 4))[:3]]
    said = {"wandb": "<pre>The &lt;b&gt; end 2\n# of it</pre>", "trackio": "    The <b> end 2\n    # of it"}[name]
    assert logged[3]["shown"] == {"samples/The <b>": said}
    assert fake.calls[-1][0] == "finish"
    assert capsys.readouterr().out == ""  # stdout is for data


def test_wandb_stays_offline_in_the_runs_folder_and_never_asks(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    fake.install(monkeypatch, "wandb")
    follow("wandb", run, course(1, 1))
    follow("wandb", run, course(2, 2))
    first, again = fake.asked("init")
    assert (first["mode"], first["dir"], first["settings"]) == ("offline", str(run.path), {"silent": True, "console": "off"})
    assert (first["id"], first["id"][:2]) == (again["id"], "a-")
    assert fake.asked("login") == []
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    monkeypatch.setenv("WANDB_MODE", "online")
    (told,) = [event for event in follow("wandb", run, course(1, 3)) if isinstance(event, Degraded)]
    assert "WANDB_API_KEY" in told.why
    assert fake.asked("login") == [{"prompt": False}]
    assert len(fake.asked("init")) == 2


def test_trackio_is_in_the_runs_folder_unless_its_owner_says_otherwise(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake().install(monkeypatch, "trackio")
    follow("trackio", run, course(1, 1))
    assert os.environ["TRACKIO_DIR"] == str(run.path / "trackio")
    monkeypatch.setenv("TRACKIO_DIR", "elsewhere")
    follow("trackio", run, course(1, 1))
    assert os.environ["TRACKIO_DIR"] == "elsewhere"


def broken() -> None:
    raise ConnectionError("no\x1b[2J\nway")


def leaving() -> None:
    raise SystemExit(1)


def hanging() -> None:
    threading.Event().wait(30)
    raise TimeoutError  # so that the thread ends, and prints nothing into a later test


@pytest.mark.parametrize("how", [broken, leaving, hanging])
@pytest.mark.parametrize("fails", ["init", "log", "finish"])
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_nothing_a_tracker_does_stops_a_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, name: str, fails: str, how: Callable[[], None]
) -> None:
    """It is told once, and the other tracker goes on."""
    monkeypatch.setattr(tracker_thread, "PATIENCE", 2.0)
    fake, other = Fake(fails, how), Fake()
    fake.install(monkeypatch, name)
    sound = {"wandb": "trackio", "trackio": "wandb"}[name]
    other.install(monkeypatch, sound)
    started = time.monotonic()
    events = follow(f"{name},{sound}", run, course(1, 6))
    assert time.monotonic() - started < 15
    (told,) = [event for event in events if isinstance(event, Degraded)]
    assert [event for event in events if event is not told] == list(course(1, 6))
    assert told.why.startswith(f"{name} is left out from here on: ")
    why = {broken: "ConnectionError: no\\x1b[2J way", leaving: "SystemExit: 1", hanging: "did not answer"}
    assert why[how] in told.why
    assert len(fake.asked("log")) == {"init": 0, "log": 1, "finish": 12}[fails]
    assert len(other.asked("log")) == 12
    assert len(other.asked("finish")) == 1


def test_a_tracker_whose_disk_fails_is_left_out(run: RunDir) -> None:
    pytest.importorskip("tensorboard")
    (run.path / "tensorboard").write_text("in the way")
    events = follow("tensorboard", run, course(1, 3))
    assert [event for event in events if not isinstance(event, Degraded)] == list(course(1, 3))
    assert sum(isinstance(event, Degraded) for event in events) == 1


def test_a_run_that_ends_early_closes_its_trackers(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    fake.install(monkeypatch, "wandb")

    def failing() -> Iterator[Event]:
        yield stepped(1)
        raise MemoryError

    with pytest.raises(MemoryError):
        follow("wandb", run, failing())
    assert [name for name, _ in fake.calls] == ["init", "log", "finish"]


def test_what_is_not_there_is_said_before_anything_happens(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Did you mean 'wandb'"):
        open_trackers(["wand"], run, {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("tensorboard", "track"), ("wandb", "wandb"), ("trackio", "trackio")):
        with pytest.raises(UsageError, match="is not installed") as caught:
            open_trackers([name], run, {})
        assert caught.value.fix == install_command(extra)
    assert set(TRACKERS) == {"tensorboard", "wandb", "trackio"}
    assert json.loads(run.environment_path.read_text()) == {}
    assert not (run.path / "tensorboard").exists()

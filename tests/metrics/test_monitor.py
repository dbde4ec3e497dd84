"""Events on disk: a line each, whole lines only."""

import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import pytest

from llamactl.errors import OutOfSpace
from llamactl.metrics.jsonl import SYNC_EVERY, Journal
from llamactl.metrics.monitor import record_events
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Event, Sampled, Saved, Spiked, Stepped, Validated
from tests.faults import Disk, put_in_place


def validated(step: int) -> Validated:
    return Validated(step, step * 10, 1e9, 1.5, 2.0, 1.0)


def test_events_are_written_before_they_are_passed_on() -> None:
    run = RunDir.from_name("a")
    events: list[Event] = [validated(1), Sampled(1, 10, 1e9, 1.5, "a\u001b", "b\n"), Saved(1, 10, 1e9, 1.5, "p")]
    for number, event in enumerate(record_events(iter(events), run), start=1):
        lines = run.metrics_path.read_text().splitlines() + run.samples_path.read_text().splitlines()
        assert len(lines) == number
        assert event in events
    assert [json.loads(line)["kind"] for line in run.metrics_path.read_text().splitlines()] == ["validation", "saved"]
    assert run.rows()[0] == {
        "kind": "validation", "step": 1, "tokens": 10, "flops": 1e9, "seconds": 1.5, "loss": 2.0, "bits_per_byte": 1.0,
        "eval_tokens": 0, "loss_error": None,
    }  # fmt: skip


def test_half_a_line_is_cut_off_before_going_on() -> None:
    run = RunDir.from_name("a")
    list(record_events(iter([validated(1), validated(2)]), run))
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "step", "st')
    list(record_events(iter([validated(3)]), run))
    assert [row["step"] for row in run.rows()] == [1, 2, 3]


def test_stopping_leaves_whole_lines() -> None:
    def endless() -> Iterator[Event]:
        step = 0
        while True:
            yield validated(step := step + 1)

    run = RunDir.from_name("a")
    events = record_events(endless(), run)
    for _ in range(5):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(run.rows()) == 5


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each file when it was synced."""
    sizes: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", watched)
    return sizes


def test_a_row_is_on_the_disk_within_a_second(home: Path, synced: list[int]) -> None:
    with Journal(home / "log") as journal:
        for step in range(3):
            synced.clear()
            journal.append(validated(step))
            size = (home / "log").stat().st_size
            deadline = time.monotonic() + 30  # for a disk that is busy
            while size not in synced:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        synced.clear()
        journal.append(validated(3))
    assert synced[-1] == (home / "log").stat().st_size
    assert SYNC_EVERY <= 0.5


def test_a_log_that_is_closed_while_it_is_synced_does_not_wait_forever(home: Path) -> None:
    journal = Journal(home / "log")

    class Late(Flag):
        def clear(self) -> None:
            """Clear only when the main thread has asked for the end."""
            assert journal._closed.wait(10)
            time.sleep(0.1)
            super().clear()

    journal._dirty = Late()

    def write() -> None:
        with journal:
            journal.append(validated(1))
            time.sleep(1.5 * SYNC_EVERY)

    writer = Thread(target=write, daemon=True)
    writer.start()
    writer.join(10)
    assert not writer.is_alive()


def test_the_logs_name_is_on_the_disk_before_its_rows(home: Path) -> None:
    with put_in_place(Disk()) as disk, Journal(home / "new" / "log"):
        assert disk.log[-1] == "fsync new"


def test_a_row_that_does_not_fit_is_taken_back_and_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(home / "log") as journal:
        journal.append(validated(1))
        whole = (home / "log").read_bytes()
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        with pytest.raises(OutOfSpace, match="Can't write"):
            journal.append(validated(2))
        monkeypatch.undo()
        assert (home / "log").read_bytes() == whole


def test_rows_stay_in_a_folder_that_is_moved_and_replaced(home: Path) -> None:
    (home / "run").mkdir()
    with Journal(home / "run" / "log") as journal:
        (home / "run").rename(home / "elsewhere")
        (home / "run").mkdir()
        journal.append(validated(1))
        (home / "elsewhere" / "log").unlink()
        journal.append(validated(2))
    assert not list((home / "run").iterdir())
    assert (home / "elsewhere" / "log").read_text().count("\n") == 1


def test_a_log_that_can_not_be_synced_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OutOfSpace, match="Can't write"), Journal(home / "log") as journal:
        monkeypatch.setattr(os, "fsync", broken)
        journal.append(validated(1))


def test_a_jump_of_the_loss_is_marked_and_noise_is_not() -> None:
    noise, run = random.Random(1), RunDir.from_name("a")

    def events() -> Iterator[Event]:
        for step in range(1, 2001):
            loss = 3 + 5 * math.exp(-step / 40) + noise.gauss(0, 0.08) + (2 if step in (900, 901) else 0)
            yield Stepped(step, step, 1.0, 1.0, loss, 0.1, 1.0, 1.0, 0.1, 1)

    found = [event.step for event in record_events(events(), run) if isinstance(event, Spiked)]
    assert found == [900, 901]
    assert [row["step"] for row in run.rows() if row["kind"] == "spike"] == [900, 901]

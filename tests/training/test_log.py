"""Events on disk: a line each, whole lines only."""

import json
from collections.abc import Iterator

from llamactl.artifacts import RunDir
from llamactl.training.events import Event, Sampled, Saved, Validated
from llamactl.training.log import record


def validated(step: int) -> Validated:
    return Validated(step, step * 10, 1e9, 1.5, 2.0, 1.0)


def test_events_are_written_before_they_are_passed_on() -> None:
    run = RunDir.named("a")
    events: list[Event] = [validated(1), Sampled(1, 10, 1e9, 1.5, "a\u001b", "b\n"), Saved(1, 10, 1e9, 1.5, "p")]
    for number, event in enumerate(record(iter(events), run), start=1):
        lines = run.metrics_path.read_text().splitlines() + run.samples_path.read_text().splitlines()
        assert len(lines) == number
        assert event in events
    assert [json.loads(line)["kind"] for line in run.metrics_path.read_text().splitlines()] == ["validation", "saved"]
    assert run.rows()[0] == {
        "kind": "validation", "step": 1, "tokens": 10, "flops": 1e9, "seconds": 1.5, "loss": 2.0, "bits_per_byte": 1.0,
    }  # fmt: skip


def test_half_a_line_is_cut_off_before_going_on() -> None:
    run = RunDir.named("a")
    list(record(iter([validated(1), validated(2)]), run))
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "step", "st')
    list(record(iter([validated(3)]), run))
    assert [row["step"] for row in run.rows()] == [1, 2, 3]


def test_stopping_leaves_whole_lines() -> None:
    def endless() -> Iterator[Event]:
        step = 0
        while True:
            yield validated(step := step + 1)

    run = RunDir.named("a")
    events = record(endless(), run)
    for _ in range(5):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(run.rows()) == 5

"""Patience: a run ends when its held-out loss no longer falls, and its best checkpoint is what its name means."""

import json
from pathlib import Path

import pytest
import torch

from llamactl.checkpoint.format import State, read_state
from llamactl.checkpoint.select import find_best_step, find_checkpoint
from llamactl.corpus.dataset import Dataset
from llamactl.errors import DataError, UsageError
from llamactl.metrics.evaluation import evaluate_at_the_end
from llamactl.metrics.monitor import record_events
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import summarize_run
from llamactl.training.events import EndedEarly, Evaluated, Event, Stepped, Validated, event_to_row
from llamactl.training.resumption import config_of_resumed_run
from llamactl.training.signals import StopRequests
from llamactl.training.trainer import train_run
from tests.training.conftest import Configured
from tests.training.test_trainer import RATE

CPU = torch.device("cpu")


def train_with_patience(name: str, configured: Configured, dataset: Dataset, stop_at: int = 0) -> list[Event]:
    """Train on with so high a rate that the loss rises after some validations; stop after a step, as if by a signal."""
    config, world = configured(
        optim={"name": "adamw", "lr": 0.3},
        train={"tokens": 25_600, "eval_every": 2, "save_every": 7, "patience": 3, "keep_last": 1, "prompts": []},
    )
    run, requests = RunDir.from_name(name), StopRequests()
    run.start(config, {}, again=True)
    events = []
    whole = evaluate_at_the_end(train_run(config, dataset, run, world, RATE, requests), run, dataset, config, CPU)
    for event in record_events(whole, run):
        events.append(event)
        if isinstance(event, Stepped) and event.step == stop_at:
            requests.stop = 15
    return events


def last_of(kind: type[Event], events: list[Event]) -> Event:
    return next(event for event in reversed(events) if isinstance(event, kind))


def test_it_ends_after_the_best_and_its_name_is_the_best(configured: Configured, dataset: Dataset) -> None:
    events = train_with_patience("impatient", configured, dataset)
    validations = [event for event in events if isinstance(event, Validated) and not isinstance(event, Evaluated)]
    losses = [event.loss for event in validations]
    best = min(range(len(losses)), key=losses.__getitem__)
    ended = last_of(EndedEarly, events)
    assert isinstance(ended, EndedEarly)
    assert (ended.lowest_loss, ended.validations) == (losses[best], 3)
    assert len(losses) == best + 4
    assert ended.step == validations[-1].step < 100
    run = RunDir.from_name("impatient")
    # Saved although it is no multiple of save_every, and kept although only one newer one is.
    assert find_best_step(run) == validations[best].step
    assert find_checkpoint("impatient") == run.checkpoint(validations[best].step)
    assert find_checkpoint(f"impatient@{ended.step}") == run.checkpoint(ended.step)
    evaluated = last_of(Evaluated, events)
    assert isinstance(evaluated, Evaluated)
    assert evaluated.step == validations[best].step
    summary = summarize_run(run)
    assert (summary.condition, summary.describe_condition(), summary.validation_loss) == ("done", "ended early", evaluated.loss)
    # A larger budget alone would change nothing.
    with pytest.raises(UsageError, match=r"impatient ended early: 3 validations") as refused:
        config_of_resumed_run(run, [{"train": {"tokens": 50_000}}])
    assert refused.value.fix.endswith("llamactl train --resume impatient --tokens 50000 --patience 0")
    assert config_of_resumed_run(run, [{"train": {"tokens": 50_000, "patience": 0}}]).train.tokens == 50_000
    with run.metrics_path.open("a") as log:
        log.write(json.dumps(event_to_row(Stepped(ended.step + 1, 1, 1.0, 1.0, 3.0, 0.1, 1.0, 1.0, 0.1, 1))) + "\n")
    assert summarize_run(run).condition == "stopped"


def test_a_damaged_best_checkpoint_is_not_taken(configured: Configured, dataset: Dataset) -> None:
    train_with_patience("damaged", configured, dataset)
    run = RunDir.from_name("damaged")
    best = find_checkpoint("damaged")
    (best / "config.json").write_text("{}")
    assert find_checkpoint("damaged") == run.checkpoint(run.steps()[-1]) != best
    assert find_checkpoint("damaged@best") == best, "who asks for it is told that it is damaged"


def test_before_the_first_validation_the_newest_is_taken(configured: Configured, dataset: Dataset) -> None:
    train_with_patience("early", configured, dataset, stop_at=1)
    assert find_checkpoint("early") == RunDir.from_name("early").checkpoint(1)
    with pytest.raises(DataError, match="no checkpoint 'best'"):
        find_checkpoint("early@best")


def test_a_run_that_is_over_stays_over(configured: Configured, dataset: Dataset) -> None:
    before = train_with_patience("over", configured, dataset)
    after = train_with_patience("over", configured, dataset)
    assert not any(isinstance(event, Stepped) for event in after)
    assert last_of(EndedEarly, after) == last_of(EndedEarly, before)


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_it_ends_at_the_same_step_when_it_was_stopped_between(stop_at: int, configured: Configured, dataset: Dataset) -> None:
    whole = train_with_patience("whole", configured, dataset)
    train_with_patience("parts", configured, dataset, stop_at)
    rest = train_with_patience("parts", configured, dataset)
    ended, other = last_of(EndedEarly, whole), last_of(EndedEarly, rest)
    assert isinstance(ended, EndedEarly)
    assert isinstance(other, EndedEarly)
    assert (ended.step, ended.lowest_loss) == (other.step, other.lowest_loss)


def test_without_patience_the_state_is_written_as_before(configured: Configured, dataset: Dataset, tmp_path: Path) -> None:
    text = State(step=1, tokens=2, seconds=3.0).to_text()
    assert "lowest_loss" not in text
    assert "validations_since" not in text
    config, world = configured()
    run = RunDir.from_name("patient")
    run.start(config, {}, again=True)
    events = list(train_run(config, dataset, run, world, RATE))
    assert not any(isinstance(event, EndedEarly) for event in events)
    assert read_state(find_checkpoint("patient")).step == 20

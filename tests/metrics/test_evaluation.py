"""After its last step a run is evaluated on the whole split, once, with the result of `llamactl eval`."""

from collections.abc import Callable, Iterator

import pytest

from llamactl.checkpoint.io import load_model
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.inference.evaluate import evaluate_streams
from llamactl.metrics.evaluation import evaluate_at_the_end
from llamactl.metrics.monitor import record_events
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import summarize_run
from llamactl.training.events import Evaluated, Event, Validated, event_from_row
from llamactl.training.signals import StopRequests
from llamactl.training.trainer import train_run

Configured = Callable[..., tuple[Config, World]]


def recorded(
    made: tuple[Config, World], dataset: Dataset, run: RunDir, requests: StopRequests | None = None
) -> Iterator[Event]:
    config, world = made
    run.path.mkdir(parents=True, exist_ok=True)
    run.start(config, {}, run.config_path.exists())
    events = train_run(config, dataset, run, world, 1e12, requests)
    yield from record_events(evaluate_at_the_end(events, run, dataset, config, world.device), run)


@pytest.fixture
def long(configured: Configured, dataset: Dataset) -> tuple[Config, World]:
    """A run on as many tokens as the validation split has."""
    split = dataset.info.total("val", "tokens")
    return configured(train={"tokens": split, "tokens_per_step": -(-split // 4), "eval_every": 2, "eval_tokens": 64})


def test_the_last_checkpoint_is_evaluated_as_eval_does(long: tuple[Config, World], dataset: Dataset) -> None:
    run = RunDir.from_name("whole")
    *_, last = recorded(long, dataset, run)
    assert isinstance(last, Evaluated)
    model, tokenizer, _ = load_model(run.checkpoint(last.step), long[1].device)
    expected = evaluate_streams(model, tokenizer, dataset.val, rests=False)
    assert (last.loss, last.loss_error, last.bits_per_byte) == (expected.loss, expected.loss_error, expected.bits_per_byte)
    assert last.eval_tokens == expected.tokens > 64
    assert event_from_row(run.rows()[-1]) == last
    summary = summarize_run(run)
    assert (summary.validation_loss, summary.eval_tokens) == (last.loss, last.eval_tokens)
    assert not any(isinstance(event, Evaluated) for event in recorded(long, dataset, run)), "it has been evaluated"


def test_a_stopped_run_is_not_evaluated(long: tuple[Config, World], dataset: Dataset) -> None:
    requests, seen = StopRequests(), []
    for event in recorded(long, dataset, RunDir.from_name("stopped"), requests):
        seen.append(event)
        requests.stop = requests.stop or 15 * isinstance(event, Validated)
    assert any(isinstance(event, Validated) for event in seen)
    assert not any(isinstance(event, Evaluated) for event in seen)


def test_a_split_larger_than_the_budget_is_left_to_eval(configured: Configured, dataset: Dataset) -> None:
    made = configured(train={"tokens": 256, "eval_tokens": 64})
    events = list(recorded(made, dataset, RunDir.from_name("short")))
    (validated,) = [event for event in events if type(event) is Validated and event.step == events[-1].step]
    assert validated.eval_tokens == 64
    assert not any(isinstance(event, Evaluated) for event in events)

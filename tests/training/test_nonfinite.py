"""Numbers that go wrong: they never reach the weights, are never saved as good, and are left behind."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint.select import find_best_step, find_newest
from llamactl.corpus.dataset import Dataset
from llamactl.errors import Diverged
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import summarize_run
from llamactl.training import trainer
from llamactl.training.events import RolledBack, Saved, Skipped, Validated
from llamactl.training.gradients import accumulate_gradients
from llamactl.training.trainer import Trainer
from llamactl.training.validation import Validation
from tests.training.conftest import Configured, Made
from tests.training.test_survival import killed_at_a_time, logged, run_to_the_end, sound
from tests.training.test_trainer import assert_equal, losses, weights


def spoiled(held: dict[str, Any], where: str, bad: float, places: set[int]) -> Callable[..., torch.Tensor]:
    """`accumulate_gradients` that meets a bad number at certain places in the data."""

    def spoil(objective: Any, batches: Any, *rest: Any) -> torch.Tensor:
        loss = accumulate_gradients(objective, batches, *rest)
        now: Trainer = held["trainer"]
        if now.state.step + now.state.data_offset in places:
            weight = now.model.lm_head.weight
            assert weight.grad is not None
            if where == "gradient":
                weight.grad[3, 3] = bad
            if where == "weights":
                places.discard(now.state.step + now.state.data_offset)  # once: it stays there
                weight.data[3, 3] = bad
        return loss * bad if where == "loss" and now.state.step + now.state.data_offset in places else loss

    return spoil


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float, set[int]], None]:
    held: dict[str, Any] = {}

    class Watched(Trainer):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            held["trainer"] = self

    def start(where: str, bad: float, places: set[int]) -> None:
        monkeypatch.setattr(trainer, "Trainer", Watched)
        monkeypatch.setattr(trainer, "accumulate_gradients", spoiled(held, where, bad, places))

    return start


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_are_skipped_then_left_behind(where: str, bad: float, made: Made, spoil: Any) -> None:
    """Seven in a row are skipped; eight lead back to the checkpoint before them, and that data is not seen again."""
    spoil(where, bad, set(range(4, 11)))
    events = run_to_the_end("seven", made)
    assert [event.step for event in events if isinstance(event, Skipped)] == list(range(5, 12))
    assert not [event for event in events if isinstance(event, RolledBack)]
    assert 12 in [event.step for event in events if isinstance(event, Saved)]  # the one of step 6 and 9 waited
    spoil(where, bad, set(range(4, 12)))
    events = run_to_the_end("eight", made)
    back = [event for event in events if isinstance(event, RolledBack)]
    assert [(event.step, event.from_step) for event in back] == [(3, 12)]
    assert events[-1].step == 30
    assert all(math.isfinite(loss) for loss in losses(events))
    assert [event.step for event in events if isinstance(event, Saved)] == list(range(3, 31, 3))
    for step in RunDir.from_name("eight").steps():
        state = checkpoint_format.read_verified_state(RunDir.from_name("eight").checkpoint(step))
        assert (state.jumped, state.rollbacks) == (9, 1)


def test_weights_that_are_no_numbers_are_never_saved(made: Made, spoil: Any) -> None:
    spoil("weights", math.nan, {7})
    events = run_to_the_end("a", made)
    assert [(event.step, event.from_step) for event in events if isinstance(event, RolledBack)] == [(6, 16)]
    assert events[-1].step == 30
    assert all(tensor.isfinite().all() for tensor in weights(RunDir.from_name("a")).values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("patience", [0, 2])
def test_a_validation_without_a_number_is_logged_and_not_saved(
    bad: float, patience: int, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of half precision, whose sums overflow where those of training do not."""
    monkeypatch.setattr(trainer, "validate_model", lambda *_: Validation(bad, bad, 100, bad))
    config, world, dataset = made
    events = run_to_the_end("a", (config.with_train(patience=patience), world, dataset))
    run = RunDir.from_name("a")
    assert [event.loss for event in events if isinstance(event, Validated)] == [pytest.approx(bad, nan_ok=True)] * len(
        [row for row in run.rows() if row["kind"] == "validation"]
    )
    assert all(row["loss"] is None for row in run.rows() if row["kind"] == "validation")
    newest, _ = find_newest(run)
    assert newest is not None
    state = checkpoint_format.read_state(newest)
    assert (state.validation_loss, state.lowest_loss) == (None, None)
    assert find_best_step(run) is None
    assert summarize_run(run).step == state.step


def test_a_bad_number_just_before_a_save_leads_back_at_once(made: Made, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Trainer.optimizer_step

    def spoil_after(self: Trainer, total: torch.Tensor) -> tuple[float, float]:
        done = update(self, total)
        if self.state.step + self.state.data_offset == 8:
            self.optimizers[0].state[next(iter(self.optimizers[0].state))]["momentum"][0, 0] = math.nan
        return done

    monkeypatch.setattr(Trainer, "optimizer_step", spoil_after)
    events = run_to_the_end("a", made)
    assert [(event.step, event.from_step) for event in events if isinstance(event, RolledBack)] == [(6, 9)]
    assert all(tensor.isfinite().all() for tensor in weights(RunDir.from_name("a")).values())


def test_after_two_rollbacks_it_stops_with_its_last_rows(made: Made, spoil: Any) -> None:
    spoil("loss", math.nan, set(range(13, 1000)))
    with pytest.raises(Diverged) as caught:
        run_to_the_end("a", made)
    assert caught.value.code == 6
    assert "loss nan" in caught.value.why
    assert len(str(caught.value).splitlines()) == 3
    assert sound(RunDir.from_name("a"))[-1] == 12
    rows = [row["kind"] for row in RunDir.from_name("a").rows()]
    assert rows.count("rolled back") == 1  # both went back to step 12, and the later row counts


def test_from_the_start_when_there_is_no_checkpoint_yet(configured: Configured, dataset: Dataset, spoil: Any) -> None:
    """As if the data had begun later: a run whose first eight steps are no good ends as one that never saw them."""
    config, world = configured(train={"tokens": 2560, "save_every": 50})
    spoil("loss", math.nan, set(range(8)))
    events = run_to_the_end("a", (config, world, dataset))
    assert [(event.step, event.from_step) for event in events if isinstance(event, RolledBack)] == [(0, 8)]
    assert events[-1].step == 10


@pytest.mark.slow
def test_a_run_that_went_back_is_as_exact_to_resume(made: Made, spoil: Any) -> None:
    spoil("loss", math.nan, {4, *range(13, 21)})
    run_to_the_end("whole", made)
    for seconds in (0.2, 0.4, 0.6, 0.8):
        killed_at_a_time("killed", made, seconds)
    run_to_the_end("killed", made)
    assert_equal(weights(RunDir.from_name("whole")), weights(RunDir.from_name("killed")))
    assert logged("whole") == logged("killed")

"""The state of a run: what it takes over from a checkpoint."""

import math

import pytest

from llamactl.checkpoint.format import State
from llamactl.training.state import TrainState


@pytest.mark.parametrize(
    ("set_before", "fitted", "set_now", "expected"),
    [
        (8, 8, 32, 32),  # a larger one was asked for
        (8, 8, 1, 1),
        (32, 8, 32, 8),  # 32 did not fit
        (32, 8, 64, 8),
        (32, 8, 4, 4),
        (None, 8, 32, 8),  # an old checkpoint, which does not say what was set
        (8, 0, 32, 32),
    ],
)
def test_a_micro_batch_that_did_not_fit_is_not_tried_again(
    set_before: int | None, fitted: int, set_now: int, expected: int
) -> None:
    config = {} if set_before is None else {"train": {"micro_batch": set_before}}
    state = TrainState(set_now)
    state.load_checkpoint(State(step=1, tokens=1, seconds=1.0, micro_batch=fitted, config=config), rollback=False)
    assert state.micro_batch == expected


def test_without_patience_no_validation_is_the_best() -> None:
    """Also of a run that had some before: it would save after each."""
    state = TrainState(1)
    for loss, patience, best in ((3.0, 2, True), (3.5, 2, False), (2.5, 0, False), (2.0, 0, False)):
        state.take_validation(loss, patience)
        assert state.is_best is best


def test_a_loss_that_is_not_a_number_uses_up_no_patience_before_there_is_a_best() -> None:
    state = TrainState(1)
    for loss, since in ((math.nan, 0), (math.inf, 0), (3.0, 0), (math.nan, 1), (3.5, 2), (2.9, 0)):
        state.take_validation(loss, 3)
        assert state.validations_since == since

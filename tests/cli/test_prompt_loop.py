"""What can be changed while one talks to a model, and what can't."""

import pytest

from llamactl.cli.ui.prompt_loop import SETTINGS, apply_slash_command
from llamactl.errors import UsageError
from llamactl.inference.generate import Request

USUAL = Request(())


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/temperature 0.7", "temperature", 0.7),
        ("/top-k 40", "top_k", 40),
        ("/top-p 0.9", "top_p", 0.9),
        ("/min-p 0.05", "min_p", 0.05),
        ("/repetition-penalty 1.2", "repetition_penalty", 1.2),
    ],
)
def test_how_tokens_are_picked_can_be_changed(line: str, name: str, value: float) -> None:
    assert getattr(apply_slash_command(line, USUAL).pick, name) == value
    assert apply_slash_command(line, USUAL).max_new_tokens == USUAL.max_new_tokens


def test_length_and_seed_can_be_changed() -> None:
    assert apply_slash_command("/max-new-tokens 7", USUAL).max_new_tokens == 7
    assert apply_slash_command("/seed 3", USUAL).seed == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/temprature 1", "'temperature'"),
        ("/temperature x", "/temperature 0.8"),
        ("/top-p 2", "range"),
        ("/temperature -1", "range"),
        ("/temperature nan", "range"),
        ("/max-new-tokens 0", "range"),
        ("/top-k 1.5", "number"),
        ("/seed", "number"),
        ("/repetition-penalty 0.5", "range"),
        ("/", "Choose"),
    ],
)
def test_what_can_not_be_is_said(line: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_slash_command(line, USUAL)
    assert says in str(caught.value)
    assert set(SETTINGS) >= {"temperature", "seed"}

"""Names that people bring from other tools lead to the setting that llamactl has."""

import pytest

from llamactl.config.other_names import ABSENT, NOTES, OTHER_NAMES, normalize_name, translate_name
from llamactl.config.schema import build_config, parse_assignment, setting_names
from llamactl.errors import UsageError


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("train.learning_rate", "optim.lr"),
        ("train.batch_size", "train.micro_batch"),
        ("train.epochs", "train.tokens"),
        ("model.d_model", "model.dim"),
        ("model.hidden_size", "model.dim"),
        ("model.layers", "model.n_layers"),
        ("model.hidden", "model.ffn_dim"),
        ("model.head_width", "model.head_dim"),
        ("schedule.floor", "schedule.min_lr_ratio"),
        ("train.recompute", "train.activation_checkpointing"),
        ("train.lr", "optim.lr"),
        ("model.N-Layer", "model.n_layers"),
        ("optim.max_grad_nrm", "optim.max_grad_norm"),
    ],
)
def test_a_wrong_setting_names_the_right_one(typed: str, setting: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config([parse_assignment(f"{typed}=3")])
    assert f"{setting!r}" in caught.value.why


@pytest.mark.parametrize(("typed", "setting"), [("learning_rate", "optim.lr"), ("lr", "optim.lr"), ("epochs", "train.tokens")])
def test_a_setting_without_its_section_is_found(typed: str, setting: str) -> None:
    with pytest.raises(UsageError, match=rf"{setting}' here"):
        parse_assignment(f"{typed}=3")


def test_what_there_is_not_says_why() -> None:
    with pytest.raises(UsageError, match="no biases"):
        build_config([parse_assignment("model.bias=true")])


def test_every_name_leads_to_a_setting_that_exists_and_to_one_only() -> None:
    names = setting_names()
    others = [normalize_name(other) for text in OTHER_NAMES.values() for other in text.split()]
    assert set(OTHER_NAMES) <= set(names)
    assert set(NOTES) <= set(OTHER_NAMES)
    assert len(others) == len(set(others))
    assert not set(ABSENT) & set(others)
    assert translate_name("nothing_of_ours") is None

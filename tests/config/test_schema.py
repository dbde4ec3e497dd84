"""Settings: precedence, checking, and the way to disk and back."""

from pathlib import Path

import pytest

from llamactl.config.presets import PRESETS
from llamactl.config.schema import (
    Config,
    build_config,
    dump_toml,
    load_toml,
    parse_assignment,
    parse_rope_scaling,
    preset_settings,
    setting_names,
)
from llamactl.errors import UsageError


def test_later_layers_win() -> None:
    config = build_config(
        [preset_settings("tiny"), {"optim": {"lr": 1.0}}, {"optim": {"lr": 2.0}}, parse_assignment("optim.lr=3e-4")]
    )
    assert config.optim.lr == 3e-4
    assert config.model.dim == PRESETS["tiny"]["model"]["dim"]
    assert config.optim.beta1 == Config().optim.beta1


def test_presets_are_not_changed_by_what_is_laid_over_them() -> None:
    build_config([preset_settings("tiny"), {"model": {"dim": 64}}])
    assert PRESETS["tiny"]["model"]["dim"] == 192


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_the_disk(name: str, tmp_path: Path) -> None:
    config = build_config([preset_settings(name), {"train": {"prompts": ['Ünï 🦙 \n "quoted" \\ back', "\u0007"]}}])
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(config), "utf-8")
    assert build_config([load_toml(path)]) == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [("train.tokens=5", 5), ("optim.name=adamw", "adamw"), ('train.device="cpu"', "cpu"), ("model.tie_embeddings=true", True)],
)
def test_assignments_are_toml_or_bare_words(setting: str, value: object) -> None:
    section, key = setting.partition("=")[0].split(".")
    assert parse_assignment(setting) == {section: {key: value}}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("optim.lr=-1", "greater than or equal to 0"),
        ("model.n_heads=5", "multiple of n_kv_heads"),
        ("model.head_dim=7", "multiple of 2"),
        ("optim.name=sgd", "'muon' or 'adamw'"),
        ("optim.lr=nan", "optim.lr"),
        ("train.tokens=1.5", "integer"),
        ("lr=1", "SECTION.KEY=VALUE"),
        ("optim.lr", "SECTION.KEY=VALUE"),
    ],
)
def test_mistakes_are_named(setting: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config([preset_settings("150m"), parse_assignment(setting)])
    assert says in str(caught.value)


def test_scalings_of_positions_are_read() -> None:
    for text, factor in (("linear:4", 4.0), ("linear:2.5", 2.5), ("none", 1.0)):
        assert build_config([preset_settings("tiny"), parse_rope_scaling(text)]).model.rope_scaling == factor


@pytest.mark.parametrize("text", ["linear:x", "linear:", "linear:0.5", "linear:nan", "linear:inf", "yarn:4", "4", "none:2", ""])
def test_other_scalings_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        build_config([preset_settings("tiny"), parse_rope_scaling(text)])


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'notebook'"):
        preset_settings("notebok")


def test_every_knob_is_described() -> None:
    sections = {name: field.default for name, field in Config.model_fields.items() if name != "preset"}
    assert len(setting_names()) == sum(len(type(section).model_fields) for section in sections.values())
    for section in sections.values():
        for name, field in type(section).model_fields.items():
            assert field.description, name


def test_the_notebook_preset_is_the_students_recipe() -> None:
    config = build_config([preset_settings("notebook")])
    assert (config.optim.name, config.optim.lr, config.train.tokens_per_step) == ("adamw", 1e-4, 12_800)
    assert (config.schedule.name, config.schedule.warmup, config.model.context) == ("cosine", 0.05, 256)

"""Settings: precedence, checking, and the way to disk and back."""

from pathlib import Path

import pytest

from llamactl.config import Config, assignment, build, dump, knobs, load, preset, rope_scaling
from llamactl.errors import BadUsage
from llamactl.presets import PRESETS


def test_later_layers_win() -> None:
    config = build([preset("tiny"), {"optim": {"lr": 1.0}}, {"optim": {"lr": 2.0}}, assignment("optim.lr=3e-4")])
    assert config.optim.lr == 3e-4
    assert config.model.width == PRESETS["tiny"]["model"]["width"]
    assert config.optim.beta1 == Config().optim.beta1


def test_presets_are_not_changed_by_what_is_laid_over_them() -> None:
    build([preset("tiny"), {"model": {"width": 64}}])
    assert PRESETS["tiny"]["model"]["width"] == 192


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_the_disk(name: str, tmp_path: Path) -> None:
    config = build([preset(name), {"train": {"prompts": ['Ünï 🦙 \n "quoted" \\ back', "\u0007"]}}])
    path = tmp_path / "config.toml"
    path.write_text(dump(config), "utf-8")
    assert build([load(path)]) == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [("train.tokens=5", 5), ("optim.name=adamw", "adamw"), ('train.device="cpu"', "cpu"), ("model.tied=true", True)],
)
def test_assignments_are_toml_or_bare_words(setting: str, value: object) -> None:
    section, key = setting.partition("=")[0].split(".")
    assert assignment(setting) == {section: {key: value}}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("optim.lr=-1", "greater than or equal to 0"),
        ("model.heads=5", "multiple of kv_heads"),
        ("model.head_width=7", "multiple of 2"),
        ("optim.name=sgd", "'muon' or 'adamw'"),
        ("optim.lr=nan", "optim.lr"),
        ("train.tokens=1.5", "integer"),
        ("lr=1", "SECTION.KEY=VALUE"),
        ("optim.lr", "SECTION.KEY=VALUE"),
    ],
)
def test_mistakes_are_named(setting: str, says: str) -> None:
    with pytest.raises(BadUsage) as caught:
        build([preset("150m"), assignment(setting)])
    assert says in str(caught.value)


def test_scalings_of_positions_are_read() -> None:
    for text, factor in (("linear:4", 4.0), ("linear:2.5", 2.5), ("none", 1.0)):
        assert build([preset("tiny"), rope_scaling(text)]).model.rope_scaling == factor


@pytest.mark.parametrize("text", ["linear:x", "linear:", "linear:0.5", "linear:nan", "linear:inf", "yarn:4", "4", "none:2", ""])
def test_other_scalings_are_refused(text: str) -> None:
    with pytest.raises(BadUsage):
        build([preset("tiny"), rope_scaling(text)])


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(BadUsage, match="Did you mean 'notebook'"):
        preset("notebok")


def test_every_knob_is_described() -> None:
    sections = {name: field.default for name, field in Config.model_fields.items() if name != "preset"}
    assert len(knobs()) == sum(len(type(section).model_fields) for section in sections.values())
    for section in sections.values():
        for name, field in type(section).model_fields.items():
            assert field.description, name


def test_the_notebook_preset_is_the_students_recipe() -> None:
    config = build([preset("notebook")])
    assert (config.optim.name, config.optim.lr, config.train.tokens_per_step) == ("adamw", 1e-4, 12_800)
    assert (config.schedule.name, config.schedule.warmup, config.model.context) == ("cosine", 0.05, 256)

"""What there is to set: that the list is whole, and that sources and differences are true."""

import pytest

from llamactl.artifacts import Dataset
from llamactl.config import Tree, assignment, build, knobs, preset
from llamactl.knobs import WORKED_OUT, difference, every, sources
from llamactl.presets import PRESETS
from llamactl.training.plan import resolve
from llamactl.training.world import join


def test_every_knob_is_there_with_what_it_takes() -> None:
    assert [knob.name for knob in every()] == knobs()
    takes = {knob.name: knob.takes for knob in every()}
    assert takes["model.layers"] == "a whole number, at least 1"
    assert takes["model.head_width"] == "a whole number, at least 2, a multiple of 2"
    assert takes["optim.beta1"] == "a number, at least 0, below 1"
    assert takes["optim.name"] == "muon or adamw"
    assert takes["train.compile"] == "auto, on or off"
    assert takes["train.prompts"] == "a list of texts"
    assert takes["train.deterministic"] == "true or false"


def test_what_is_worked_out_is_what_resolving_replaces(dataset: Dataset) -> None:
    open_yet = build([preset("10m"), {"train": {"device": "cpu"}}])
    resolved = resolve(open_yet, dataset, join(open_yet.train))
    assert {knob.name for knob in every() if knob.of(resolved) != knob.of(open_yet)} == WORKED_OUT
    assert {knob.name for knob in every() if knob.left_open(open_yet)} == WORKED_OUT
    assert not [knob.name for knob in every() if knob.left_open(resolved)]


def test_the_last_layer_that_names_a_setting_is_its_source() -> None:
    layers: list[tuple[str, Tree]] = [
        ("a", {"optim": {"lr": 1.0, "beta2": 0.9}}),
        ("b", {"preset": "x", "optim": {"lr": 2.0}}),
        ("c", {"model": {}}),
    ]
    found = sources(layers)
    assert (found["optim.lr"], found["optim.beta2"], found["model.layers"]) == ("b", "a", "default")
    assert set(found) == {*knobs()}


@pytest.mark.parametrize("name", [*PRESETS, "forgotten"])
def test_a_difference_laid_over_its_preset_is_the_config_again(name: str) -> None:
    usual = {"preset": name} | PRESETS.get(name, {})
    config = build([usual, assignment("optim.lr=0.5"), assignment("train.prompts=['x']")])
    assert difference(config) == {"optim": {"lr": 0.5}, "train": {"prompts": ("x",)}}
    assert build([usual, difference(config)]) == config

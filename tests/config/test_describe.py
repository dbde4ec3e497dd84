"""What there is to set: that the list is whole, and that sources and differences are true."""

import shlex

import pytest

from llamactl.config.describe import WORKED_OUT, all_settings, differs_from_preset, setting_sources, train_command
from llamactl.config.presets import PRESETS
from llamactl.config.schema import Tree, build_config, parse_assignment, preset_settings, setting_names
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import init_device
from llamactl.planning.resolve import resolve_config


def test_every_knob_is_there_with_what_it_takes() -> None:
    assert [knob.name for knob in all_settings()] == setting_names()
    takes = {knob.name: knob.takes for knob in all_settings()}
    assert takes["model.n_layers"] == "a whole number, at least 1, at most 1000"
    assert takes["model.head_dim"] == "a whole number, at least 2, at most 8192, a multiple of 2"
    assert takes["optim.beta1"] == "a number, at least 0, below 1"
    assert takes["optim.name"] == "muon or adamw"
    assert takes["train.compile"] == "auto, on, off or graphs"
    assert takes["train.prompts"] == "a list of texts"
    assert takes["train.deterministic"] == "true or false"


def test_what_is_worked_out_is_what_resolving_replaces(dataset: Dataset) -> None:
    open_yet = build_config([preset_settings("10m"), {"train": {"device": "cpu"}}])
    resolved = resolve_config(open_yet, dataset, init_device(open_yet.train))
    assert {knob.name for knob in all_settings() if knob.of(resolved) != knob.of(open_yet)} == WORKED_OUT
    assert {knob.name for knob in all_settings() if knob.left_open(open_yet)} == WORKED_OUT
    assert not [knob.name for knob in all_settings() if knob.left_open(resolved)]


def test_the_last_layer_that_names_a_setting_is_its_source() -> None:
    layers: list[tuple[str, Tree]] = [
        ("a", {"optim": {"lr": 1.0, "beta2": 0.9}}),
        ("b", {"preset": "x", "optim": {"lr": 2.0}}),
        ("c", {"model": {}}),
    ]
    found = setting_sources(layers)
    assert (found["optim.lr"], found["optim.beta2"], found["model.n_layers"]) == ("b", "a", "default")
    assert set(found) == {*setting_names()}


@pytest.mark.parametrize("name", [*PRESETS, "forgotten"])
def test_a_difference_laid_over_its_preset_is_the_config_again(name: str) -> None:
    usual = {"preset": name} | PRESETS.get(name, {})
    config = build_config([usual, parse_assignment("optim.lr=0.5"), parse_assignment("train.prompts=['x']")])
    assert differs_from_preset(config) == {"optim": {"lr": 0.5}, "train": {"prompts": ("x",)}}
    assert build_config([usual, differs_from_preset(config)]) == config


def test_the_command_of_a_longer_run_carries_what_was_chosen_and_parses(dataset: Dataset) -> None:
    chosen = {
        "optim": {"max_grad_norm": 2.0, "lr": 0.01},
        "train": {"prompts": ["A b", "it's"], "eval_tokens": 512},
    }
    plain = [preset_settings("tiny"), {"train": {"tokens": 5_000}}]
    world = init_device(build_config(plain).train)
    usual, config = (resolve_config(build_config([*plain, tree]), dataset, world) for tree in ({}, chosen))
    renamed = config.model_copy(update={"data": config.data.model_copy(update={"name": "my text"})})
    words = shlex.split(train_command(renamed, 2_000_000, usual))
    assert words[:8] == ["llamactl", "train", "--data", "my text", "--preset", "tiny", "--tokens", "2M"]
    typed = [parse_assignment(word) for word in words[9::2]]
    assert words[8::2] == ["--set"] * len(typed)
    assert resolve_config(build_config([*plain, *typed]), dataset, world) == config
    assert train_command(usual, 2_000_000, usual).endswith("--tokens 2M"), "what was worked out is worked out again"

"""Describe the settings: their names, meaning and valid values, and where the value of each came from."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic.fields import FieldInfo

from llamactl.config.presets import PRESETS
from llamactl.config.schema import Config, Section, Tree, build_config
from llamactl.units import show_count

# Settings whose default (0, -1, "" or "auto") is a placeholder, which `planning/resolve.py` replaces before step 0.
WORKED_OUT = {
    "model.vocab_size", "data.name", "optim.lr", "optim.embedding_scale",
    "train.tokens", "train.tokens_per_step", "train.micro_batch", "train.eval_every", "train.eval_tokens", "train.patience",
    "train.save_every", "train.precision", "train.compile", "train.activation_checkpointing", "train.prompts",
}  # fmt: skip

# Settings of a run that another one would not want: where it starts, what follows from both and from the machine.
OF_ONE_RUN = {
    "model.vocab_size", "data.name", "train.tokens", "train.init_from", "train.init_sha256", "train.device",
    "train.teachers_sha256", "train.micro_batch", "train.eval_every", "train.save_every", "train.precision", "train.compile",
    "train.activation_checkpointing",
}  # fmt: skip

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}

Layers = Iterable[tuple[str, Tree]]


@dataclass(frozen=True)
class Setting:
    """A setting: its table and key in config.toml, its default, its valid values and its meaning."""

    section: str
    key: str
    default: Any
    takes: str
    meaning: str

    @property
    def name(self) -> str:
        """Return the name as `--set` takes it: optim.lr."""
        return f"{self.section}.{self.key}"

    def of(self, config: Config) -> Any:
        """Return the value of this setting in a config."""
        return getattr(getattr(config, self.section), self.key)

    def left_open(self, config: Config) -> bool:
        """Check whether the value is a placeholder that is resolved before step 0."""
        return self.name in WORKED_OUT and self.of(config) == self.default


def sections() -> dict[str, type[Section]]:
    """Return the tables of config.toml by name."""
    return {name: type(field.default) for name, field in Config.model_fields.items() if isinstance(field.default, Section)}


def all_settings() -> list[Setting]:
    """Return all settings in the order of config.toml."""
    return [
        Setting(section, key, field.default, _takes(field), field.description or "")
        for section, table in sections().items()
        for key, field in table.model_fields.items()
    ]


def _takes(field: FieldInfo) -> str:
    """Describe the values that a field accepts."""
    if get_origin(field.annotation) is Literal:
        *others, last = map(str, get_args(field.annotation))
        return f"{', '.join(others)} or {last}"
    bounds = [
        f"{words} {getattr(bound, name)}" for bound in field.metadata for name, words in BOUNDS.items() if hasattr(bound, name)
    ]
    return ", ".join([next((said for kind, said in KINDS.items() if kind is field.annotation), "a list of texts"), *bounds])


def setting_sources(layers: Layers) -> dict[str, str]:
    """Return the source of each setting: the last named tree that contains it, or `default`."""
    found = {setting.name: "default" for setting in all_settings()}
    for source, tree in layers:
        found |= {f"{section}.{key}": source for section in sections() for key in tree.get(section, {})}
    return found


def train_command(config: Config, tokens: int, usual: Config) -> str:
    """Return the command that trains a resolved config again for a budget: its dataset, its preset, and what was set besides.

    `usual` is what the same preset, dataset and budget resolve to where nothing else is set.
    """
    chosen = [
        f" --set {shlex.quote(f'{setting.name}={_as_typed(setting.of(config))}')}"
        for setting in all_settings()
        if setting.name not in OF_ONE_RUN and setting.of(config) != setting.of(usual)
    ]
    data, preset = shlex.quote(config.data.name), shlex.quote(config.preset)
    return f"llamactl train --data {data} --preset {preset} --tokens {show_count(tokens)}{''.join(chosen)}"


def _as_typed(value: object) -> str:
    """Format a value as `--set` takes it: TOML on one line."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_typed, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def _of_preset(config: Config) -> Config:
    return build_config([PRESETS.get(config.preset, {})])


def differs_from_preset(config: Config) -> Tree:
    """Return the settings that differ from the config's preset, as a tree; an unknown preset counts as empty."""
    usual = _of_preset(config)
    found: Tree = {}
    for setting in all_settings():
        if setting.of(config) != setting.of(usual):
            found.setdefault(setting.section, {})[setting.key] = setting.of(config)
    return found

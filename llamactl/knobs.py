"""What there is to set, what it means, and where the value of each setting came from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from llamactl.config import Config, Section, Tree, build
from llamactl.presets import PRESETS

# Settings whose 0, "" or "auto" is replaced before step 0, by `training/plan.py`.
WORKED_OUT = {
    "model.vocab_size", "data.name", "optim.lr", "optim.embedding_scale",
    "train.tokens_per_step", "train.micro_batch", "train.eval_every", "train.eval_tokens", "train.save_every",
    "train.precision", "train.compile", "train.recompute",
}  # fmt: skip

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}

Layers = Iterable[tuple[str, Tree]]


@dataclass(frozen=True)
class Knob:
    """A setting: its table and key in a config.toml, its default, what it takes and what it does."""

    section: str
    key: str
    default: Any
    takes: str
    meaning: str

    @property
    def name(self) -> str:
        """As `--set` takes it: optim.lr."""
        return f"{self.section}.{self.key}"

    def of(self, config: Config) -> Any:
        """Its value in a config."""
        return getattr(getattr(config, self.section), self.key)

    def left_open(self, config: Config) -> bool:
        """Whether its value is worked out before step 0."""
        return self.name in WORKED_OUT and self.of(config) in (0, "", "auto")


def sections() -> dict[str, type[Section]]:
    """The tables of a config.toml."""
    return {name: type(field.default) for name, field in Config.model_fields.items() if isinstance(field.default, Section)}


def every() -> list[Knob]:
    """All settings, in the order of a config.toml."""
    return [
        Knob(section, key, field.default, _takes(field), field.description or "")
        for section, table in sections().items()
        for key, field in table.model_fields.items()
    ]


def _takes(field: FieldInfo) -> str:
    """The values that a field accepts."""
    if get_origin(field.annotation) is Literal:
        *others, last = map(str, get_args(field.annotation))
        return f"{', '.join(others)} or {last}"
    bounds = [
        f"{words} {getattr(bound, name)}" for bound in field.metadata for name, words in BOUNDS.items() if hasattr(bound, name)
    ]
    return ", ".join([next((said for kind, said in KINDS.items() if kind is field.annotation), "a list of texts"), *bounds])


def sources(layers: Layers) -> dict[str, str]:
    """For each setting the last of some named trees that gives it, or `default` where none does."""
    found = {knob.name: "default" for knob in every()}
    for source, tree in layers:
        found |= {f"{section}.{key}": source for section in sections() for key in tree.get(section, {})}
    return found


def difference(config: Config) -> Tree:
    """What a config has that its preset has not, as a tree; a preset that there is no more counts as none."""
    usual = build([PRESETS.get(config.preset, {})])
    found: Tree = {}
    for knob in every():
        if knob.of(config) != knob.of(usual):
            found.setdefault(knob.section, {})[knob.key] = knob.of(config)
    return found

"""Every knob of a run, the presets, and how they are loaded, overridden and saved.

Config is data: frozen, typed, without torch. A 0 means "work it out from the rest"; `training/plan.py`
does that before step 0, so that the config a run saves has no zeros left.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llamactl.errors import BadUsage, nearest
from llamactl.presets import PRESETS


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Switch = Literal["auto", "on", "off"]


class ModelConfig(Section):
    """The shape of the Llama."""

    layers: int = Field(12, ge=1, description="blocks, one after another")
    width: int = Field(768, ge=1, description="channels of the residual stream")
    heads: int = Field(6, ge=1, description="query heads")
    kv_heads: int = Field(2, ge=1, description="key/value heads; fewer than heads is grouped-query attention")
    head_width: int = Field(128, ge=2, multiple_of=2, description="channels of a head")
    hidden: int = Field(2048, ge=1, description="channels inside SwiGLU")
    context: int = Field(1024, ge=1, description="tokens in a window")
    vocab_size: int = Field(0, ge=0, description="rows of the embedding; 0: the dataset's, up to a multiple of 128")
    tied: bool = Field(False, description="the head shares the embedding's weights")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary wavelengths")
    rope_scaling: float = Field(
        1.0, ge=1, allow_inf_nan=False, description="positions are divided by it: linear interpolation, for a longer context"
    )
    norm_eps: float = Field(1e-5, gt=0, description="epsilon of RMSNorm")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class DataConfig(Section):
    """Which tokens, in which order."""

    name: str = Field("", description="folder under data/; empty: the newest dataset")
    seed: int = Field(0, ge=0, description="seed of the order of windows")


class OptimConfig(Section):
    """The optimizer; `lr` and `weight_decay` mean the same for both."""

    name: Literal["muon", "adamw"] = Field("muon", description="muon: Muon for matrices in blocks, AdamW for the rest")
    lr: float = Field(0.0, ge=0, description="peak learning rate; 0: from the optimizer and the width")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay of matrices inside blocks")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: memory of the gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: memory of the squared gradient")
    eps: float = Field(1e-10, gt=0, description="AdamW: added to the root of the squared gradient")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon: memory of the gradient, after its warm-up")
    row_memory: float = Field(0.95, ge=0, lt=1, description="Muon: memory of how much each row moves; 0: rows are not evened")
    embedding_scale: float = Field(
        0.0, ge=0, description="Muon: the embedding's rate as a multiple of lr; 0: 20, or 1 where it is the head as well"
    )
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


class ScheduleConfig(Section):
    """How the learning rate moves over the run."""

    name: Literal["cosine", "wsd"] = Field("cosine", description="wsd: warm up, stay, then decay in a straight line")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps that warm up")
    cooldown: float = Field(0.6, ge=0, le=1, description="wsd: share of the steps that decay")
    floor: float = Field(0.1, ge=0, le=1, description="share of the peak that is left at the end")


class TrainConfig(Section):
    """How long, how much at a time, how often it looks up, and on what."""

    tokens: int = Field(3_000_000_000, ge=1, description="budget: tokens to train on")
    tokens_per_step: int = Field(0, ge=0, description="tokens of one optimizer step; 0: from the budget")
    micro_batch: int = Field(0, ge=0, description="windows on the device at once; 0: what memory allows")
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the samples")
    init_from: str = Field("", description="RUN@STEP or folder of the checkpoint it starts from; empty: from the seed")
    init_sha256: str = Field("", description="sha256 of that checkpoint's weights; empty: worked out when the run starts")
    eval_every: int = Field(0, ge=0, description="steps between validations; 0: some ten in a run")
    eval_tokens: int = Field(0, ge=0, description="validation tokens, the same each time; 0: a small share of the budget")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0: at each validation")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep, beside the best")
    keep_every: int = Field(0, ge=0, description="checkpoints of steps that are multiples of it are kept too; 0: none")
    prompts: tuple[str, ...] = Field(("California is", "The people", "In the year"), description="sampled each validation")
    sample_tokens: int = Field(48, ge=1, description="tokens of each of those samples")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "bf16", "fp32", "fp16"] = Field("auto", description="number format of the matrix products")
    parallel: str = Field(
        "auto", pattern=r"^(auto|ddp|fsdp|hsdp(:[1-9]\d*)?)$",
        description="how processes share the work. ddp: each holds the model; fsdp: a part of it; hsdp: a part of a copy "
        "that is spread over one machine, or over N processes with hsdp:N; auto: ddp where memory allows",
    )  # fmt: skip
    deterministic: bool = Field(False, description="on a GPU: the same bits every time, at some cost in speed")
    compile: Switch = Field("auto", description="torch.compile of the blocks; auto: when the run is long enough to gain")
    recompute: Switch = Field("auto", description="activations again in the backward pass; auto: when memory asks for it")


class Config(Section):
    """A whole run. The same data, config and device give the same weights."""

    preset: str = Field("150m", description="where the shape came from")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()


Tree = dict[str, Any]


def preset(name: str) -> Tree:
    """The settings of a preset; raises BadUsage with the nearest name."""
    if name not in PRESETS:
        raise BadUsage(f"There is no preset {name!r}.", nearest(name, PRESETS))
    return {"preset": name} | PRESETS[name]


def build(layers: Iterable[Mapping[str, Any]]) -> Config:
    """Lay trees of settings over one another, later ones winning, and check the result."""
    tree: Tree = {}
    for layer in layers:
        _lay_over(tree, layer)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise BadUsage(*_explain(error)) from error


def _lay_over(tree: Tree, layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _lay_over(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def knobs() -> list[str]:
    """The names of all settings, as `--set` takes them: `optim.lr`."""
    sections = {name: field.default for name, field in Config.model_fields.items() if isinstance(field.default, Section)}
    return [f"{section}.{key}" for section, default in sections.items() for key in type(default).model_fields]


def _explain(error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"There is no setting {name!r}.", nearest(name, knobs())
    what = f"The setting {name!r} can't be {first['input']!r}." if name.count(".") else "The settings contradict one another."
    return what, first["msg"].removeprefix("Value error, ") + "."


def assignment(text: str) -> Tree:
    """Read `optim.lr=1e-3` as a tree; the value is TOML, or a bare word."""
    name, equals, value = text.partition("=")
    if not equals or name.count(".") != 1:
        raise BadUsage(f"--set takes SECTION.KEY=VALUE, not {text!r}.", "", "Example: --set optim.lr=1e-3")
    section, key = name.strip().split(".")
    return {section: {key: _value(value.strip())}}


def rope_scaling(text: str) -> Tree:
    """Read `linear:4`, or `none`, as a tree."""
    kind, _, factor = text.partition(":")
    if kind != "linear" and text != "none":
        why = "It is none, or linear:F, where F divides the positions."
        raise BadUsage(f"--rope-scaling can't be {text!r}.", why, "Example: --rope-scaling linear:4")
    return {"model": {"rope_scaling": _value(factor) if kind == "linear" else 1.0}}


def _value(text: str) -> object:
    for written in (text, f'"{text}"'):
        try:
            return tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return text


def load(path: Path) -> Tree:
    """Read a TOML file of settings, such as a run's config.toml."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadUsage(f"The config {path} can't be read.", str(error)) from error


def dump(config: Config) -> str:
    """Write a config as TOML that `load` reads back to an equal one."""
    return tomli_w.dumps(config.model_dump(mode="json"))

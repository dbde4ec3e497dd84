"""The settings of a run, and functions that load, override and save them.

A config is data: frozen, typed, independent of torch. A value of 0 means "derive it from the other settings";
`planning/resolve.py` does so before step 0, so that a saved config has no such zeros left.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llamactl.config.other_names import normalize_name, translate_name
from llamactl.config.presets import PRESETS
from llamactl.errors import UsageError, suggest_nearest


def _whole(value: object) -> object:
    """Convert an integral float to an int, because TOML reads 1e6 as a float; return other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
Checkpoints = Annotated[tuple[str, ...], Field(max_length=64, strict=False)]

MOST_STEPS = 10**12  # largest interval, in steps
LONGEST_SHOWN = 60  # characters of a value in a message


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys and converts nothing: numbers are finite and have bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Switch = Literal["auto", "on", "off"]
Compilation = Literal["auto", "on", "off", "graphs"]


class ModelConfig(Section):
    """The shape of the Llama."""

    n_layers: Whole = Field(12, ge=1, le=1_000, description="blocks, one after another")
    dim: Whole = Field(768, ge=1, le=1 << 18, description="channels of the residual stream")
    n_heads: Whole = Field(6, ge=1, le=4_096, description="query heads")
    n_kv_heads: Whole = Field(2, ge=1, le=4_096, description="key/value heads; fewer than n_heads is grouped-query attention")
    head_dim: Whole = Field(128, ge=2, le=8_192, multiple_of=2, description="channels of a head")
    ffn_dim: Whole = Field(2048, ge=1, le=1 << 20, description="channels inside SwiGLU")
    context: Whole = Field(1024, ge=1, le=1 << 24, description="tokens in a window")
    vocab_size: Whole = Field(
        0, ge=0, le=1 << 24, description="rows of the embedding; 0: the dataset's, up to a multiple of 128"
    )
    tie_embeddings: bool = Field(False, description="the head shares the embedding's weights")
    rope_theta: float = Field(10_000.0, ge=1, le=1e12, description="base of the rotary wavelengths")
    rope_scaling: float = Field(
        1.0, ge=1, le=1e6, description="positions are divided by it: linear interpolation, for a longer context"
    )
    rope_original_context: Whole = Field(
        0, ge=0, le=1 << 24, description="scale as Llama 3 does, from a context of so many tokens; 0: linearly"
    )
    rope_low_freq: float = Field(1.0, gt=0, le=1e6, description="Llama 3: wavelengths above context / it are scaled in full")
    rope_high_freq: float = Field(4.0, gt=0, le=1e6, description="Llama 3: wavelengths below context / it are not scaled")
    norm_eps: float = Field(1e-5, ge=1e-12, le=1, description="epsilon of RMSNorm")
    qk_norm: bool = Field(False, description="RMSNorm of queries and keys, each head; the model is then a Qwen3")
    qkv_bias: bool = Field(False, description="biases of queries, keys and values; the model is then a Qwen2")

    @model_validator(mode="after")
    def _settings_agree(self) -> "ModelConfig":
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.qk_norm and self.qkv_bias:
            raise ValueError("qk_norm is Qwen3's and qkv_bias is Qwen2's: no model that other programs load has both")
        if self.rope_original_context and self.rope_low_freq >= self.rope_high_freq:
            raise ValueError(f"rope_low_freq ({self.rope_low_freq}) must be below rope_high_freq ({self.rope_high_freq})")
        return self


class DataConfig(Section):
    """Which tokens, in which order."""

    name: str = Field("", description="folder under data/; empty: the newest dataset")
    seed: Seed = Field(0, description="seed of the order of windows")
    loss_on: Literal["all", "assistant"] = Field("all", description="tokens that count; assistant: replies in conversations")
    separate_documents: bool = Field(False, description="documents that share a window do not see one another")


class OptimConfig(Section):
    """The optimizer; `lr` and `weight_decay` mean the same for both."""

    name: Literal["muon", "adamw"] = Field("muon", description="muon: Muon for matrices in blocks, AdamW for the rest")
    lr: float = Field(0.0, ge=0, le=1_000, description="peak learning rate; 0: from the optimizer and the width")
    weight_decay: float = Field(0.1, ge=0, le=100, description="decoupled decay of matrices inside blocks")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the momentum")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: memory of the squared gradient")
    eps: float = Field(1e-10, ge=1e-30, le=1, description="AdamW: added to the root of the squared gradient")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon: momentum, after its warm-up")
    normuon_beta2: float = Field(
        0.95, ge=0, lt=1, description="Muon: memory of how much each row moves; 0: rows are not evened"
    )
    embedding_scale: float = Field(
        0.0, ge=0, le=10_000, description="Muon: the embedding's rate, a multiple of lr; 0: 20, or 1 where it is the head too"
    )
    max_grad_norm: float = Field(1.0, ge=1e-9, le=1e9, description="largest norm of the gradient")


class ScheduleConfig(Section):
    """How the learning rate moves over the run."""

    name: Literal["cosine", "wsd"] = Field("cosine", description="wsd: warm up, stay, then decay in a straight line")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps that warm up")
    cooldown: float = Field(0.6, ge=0, le=1, description="wsd: share of the steps that decay")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="share of the peak that is left at the end")


class TrainConfig(Section):
    """How long, how much at a time, how often it looks up, and on what."""

    tokens: Whole = Field(0, ge=0, le=10**18, description="budget: tokens to train on; 0: what size and data are worth")
    tokens_per_step: Whole = Field(0, ge=0, le=1 << 30, description="tokens of one optimizer step; 0: from the budget")
    micro_batch: Whole = Field(0, ge=0, le=1 << 20, description="windows on the device at once; 0: what memory allows")
    seed: Seed = Field(0, description="seed of the initial weights and of the samples")
    init_from: str = Field("", description="RUN@STEP or folder of the checkpoint it starts from; empty: from the seed")
    init_sha256: str = Field("", description="sha256 of that checkpoint's weights; empty: worked out when the run starts")
    eval_every: Whole = Field(0, ge=0, le=MOST_STEPS, description="steps between validations; 0: some ten in a run")
    eval_tokens: Whole = Field(
        0, ge=0, le=10**15, description="validation tokens, the same each time; 0: a small share of the budget"
    )
    patience: Whole = Field(
        -1, ge=-1, le=10**6, description="validations without a lower loss that end a run; 0: any number; -1: from the budget"
    )
    dropout: float = Field(
        0.0, ge=0, le=0.9, description="share of elements that are left out in training; 0.2 for text read many times"
    )
    teachers: Checkpoints = Field((), description="checkpoints whose mean prediction is learned beside the text")
    teachers_sha256: Checkpoints = Field((), description="sha256 of their weights; empty: worked out when the run starts")
    teacher_share: float = Field(0.9, ge=0, le=1, description="share of the teachers' predictions in what is learned")
    save_every: Whole = Field(0, ge=0, le=MOST_STEPS, description="steps between checkpoints; 0: at each validation")
    save_minutes: float = Field(10.0, ge=0, le=1e6, description="minutes of work that are lost at most; 0: any")
    keep_last: Whole = Field(2, ge=1, le=10**6, description="newest checkpoints to keep, beside the best")
    keep_every: Whole = Field(
        0, ge=0, le=MOST_STEPS, description="checkpoints of steps that are multiples of it are kept too; 0: none"
    )
    prompts: tuple[str, ...] = Field(
        ("auto",), max_length=1_000, strict=False,
        description="sampled at each validation; auto: how three held-out documents begin",
    )  # fmt: skip
    sample_tokens: Whole = Field(48, ge=1, le=100_000, description="tokens of each of those samples")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "bf16", "fp32", "fp16"] = Field("auto", description="number format of the matrix products")
    parallel: str = Field(
        "auto", pattern=r"^(auto|ddp|fsdp|hsdp(:[1-9]\d*)?)$",
        description="how processes share the work. ddp: each holds the model; fsdp: a part of it; hsdp: a part of a copy "
        "that is spread over one machine, or over N processes with hsdp:N; auto: ddp where memory allows",
    )  # fmt: skip
    deterministic: bool = Field(False, description="on a GPU: the same bits every time, at some cost in speed")
    compile: Compilation = Field(
        "auto", description="torch.compile of the blocks; graphs: and a CUDA graph of each micro-batch; auto: what gains time"
    )
    activation_checkpointing: Switch = Field(
        "auto", description="activations again in the backward pass; auto: when memory asks for it"
    )


class Config(Section):
    """A whole run. The same data, config and device give the same weights."""

    preset: str = Field("150m", description="where the shape came from")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()

    def with_train(self, **settings: object) -> "Config":
        """Return a copy with other settings of training, which are not validated again."""
        return self.model_copy(update={"train": self.train.model_copy(update=settings)})


Tree = dict[str, Any]


def preset_settings(name: str) -> Tree:
    """Return the settings of a preset; raises UsageError that suggests the nearest name."""
    if not isinstance(name, str) or name not in PRESETS:  # the value may come from a file and have any type
        raise UsageError(f"There is no preset {_shown(name)}.", suggest_nearest(str(name)[:LONGEST_SHOWN], PRESETS))
    return {"preset": name} | PRESETS[name]


def build_config(layers: Iterable[Mapping[str, Any]]) -> Config:
    """Merge trees of settings, later ones overriding earlier ones, and validate the result; raises UsageError."""
    tree: Tree = {}
    for layer in layers:
        _lay_over(tree, layer)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(*_explain(error)) from error


def _lay_over(tree: Tree, layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _lay_over(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def setting_names() -> list[str]:
    """Return the names of all settings as `--set` takes them: `optim.lr`."""
    sections = {name: field.default for name, field in Config.model_fields.items() if isinstance(field.default, Section)}
    return [f"{section}.{key}" for section, default in sections.items() for key in type(default).model_fields]


def find_by_key(name: str) -> str:
    """Return the first setting whose key is `name` but for its section, case, hyphens and underscores; empty for none."""
    return next((setting for setting in setting_names() if normalize_name(setting) == normalize_name(name)), "")


def suggest_setting(name: str) -> str:
    """Return a sentence that leads from a wrong name, or another tool's, to the right one."""
    other = translate_name(name)
    setting, note = (other.setting, other.note) if other else (find_by_key(name), "")
    if not setting:
        return note or suggest_nearest(name, setting_names())
    return f"It is called {setting!r} here. {note}".rstrip()


def _explain(error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"There is no setting {name!r}.", suggest_setting(name)
    what = (
        f"The setting {name!r} can't be {_shown(first['input'])}."
        if first["type"] != "value_error"
        else "The settings contradict one another."
    )
    return what, first["msg"].removeprefix("Value error, ") + "."


def _shown(value: object) -> str:
    """Format a value for an error message, truncated to LONGEST_SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python converts
        return "such a number"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def parse_assignment(text: str) -> Tree:
    """Parse `optim.lr=1e-3` into a tree; the value is TOML or an unquoted string. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals or name.count(".") != 1:
        why = suggest_setting(name) if equals and name else ""
        raise UsageError(f"--set takes SECTION.KEY=VALUE, not {_shown(text)}.", why, "Example: --set optim.lr=1e-3")
    section, key = name.strip().split(".")
    return {section: {key: _value(value.strip())}}


def parse_rope_scaling(text: str) -> Tree:
    """Parse `linear:4` or `none` into a tree; raises UsageError for any other text."""
    kind, _, factor = text.partition(":")
    if kind != "linear" and text != "none":
        why = "Use none, or linear:F, where F divides the positions."
        raise UsageError(f"--rope-scaling can't be {text!r}.", why, "Example: --rope-scaling linear:4")
    return {"model": {"rope_scaling": _value(factor) if kind == "linear" else 1.0}}


def _value(text: str) -> object:
    for written in (text, f'"{text}"'):
        try:
            return tomllib.loads(f"value = {written}")["value"]
        except (ValueError, RecursionError):  # tomllib raises ValueError for an int with thousands of digits
            continue
    return text


def load_toml(path: Path) -> Tree:
    """Read a TOML file of settings, such as a run's config.toml; raises UsageError when it can't be read."""
    try:
        return parse_toml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The config {path} can't be read.", str(error)) from error


def parse_toml(text: str) -> Tree:
    """Parse TOML; raises ValueError for invalid or too deeply nested text."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("It is nested too deeply") from error


def dump_toml(config: Config) -> str:
    """Serialise a config as TOML that `load_toml` reads back to an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json"))

"""What was typed about a run: the options that several commands share, and the config that they add up to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.bounds import LARGEST_SEED
from llamactl.cli.preconditions import named_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llamactl.config.schema import Config

# Headings under which options stand in the help.
RUN, START, MACHINE, SAID = "Run", "Initialization", "Execution", "Output"
GENERATION, SAMPLING = "Generation", "Sampling"

MODEL_HELP = "A model: RUN, RUN@STEP, RUN@best, a folder, or hf:ORG/NAME."
INIT_HELP = "Start from a model: RUN, RUN@STEP, RUN@best, a folder, or hf:ORG/NAME."
SCALING_HELP = "none, or linear:F to divide positions by F. Left out: as much as --context outgrows the checkpoint's."
SEPARATE_HELP = "Keep attention within each document, where several share a window."
WEIGHTS_HELP = "Format of the weights: smaller is faster and less exact: int8 slightly, int4 noticeably."
SET_HELP = "SECTION.KEY=VALUE, any setting of config.toml; repeatable. Example: --set optim.lr=1e-3"

DataName = Annotated[
    str,
    typer.Option(
        help="Dataset under data/.", show_default="the newest", rich_help_panel=RUN, autocompletion=completion.datasets
    ),
]
PresetName = Annotated[
    str,
    typer.Option(
        help="tiny, 10m, 50m, 150m, 350m, 1b, 7b, notebook.", show_default="by the data", rich_help_panel=RUN,
        autocompletion=completion.presets,
    ),
]  # fmt: skip
Tokens = Annotated[
    str,
    typer.Option(help="Budget: 256000, 256k, 1.5B.", show_default="by size and data", rich_help_panel=RUN),
]
Time = Annotated[
    str,
    typer.Option(
        "--time", help="Instead of --tokens: 10m, 2h. Choose size and budget.", show_default=False, rich_help_panel=RUN
    ),
]
ConfigFile = Annotated[Path | None, typer.Option(help="A config.toml to start from.", show_default=False, rich_help_panel=RUN)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help=SET_HELP, show_default=False, rich_help_panel=RUN, autocompletion=completion.settings),
]
InitFrom = Annotated[
    str,
    typer.Option(
        metavar="CHECKPOINT", help=INIT_HELP, show_default=False, rich_help_panel=START, autocompletion=completion.checkpoints
    ),
]
Context = Annotated[
    int | None, typer.Option(min=1, help="Tokens in a window.", show_default="the shape's", rich_help_panel=START)
]
SeparateDocuments = Annotated[
    bool, typer.Option("--separate-documents", help=SEPARATE_HELP, show_default=False, rich_help_panel=RUN)
]
RopeScaling = Annotated[str, typer.Option(help=SCALING_HELP, show_default=False, rich_help_panel=START)]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", show_default="auto", rich_help_panel=MACHINE)]
PrecisionName = Annotated[str, typer.Option(help="auto, bf16, fp32, fp16.", show_default="auto", rich_help_panel=MACHINE)]
ParallelWay = Annotated[str, typer.Option(help="auto, ddp, fsdp, hsdp, hsdp:N.", show_default="auto", rich_help_panel=MACHINE)]

Temperature = Annotated[
    float, typer.Option(min=0, help="0 takes the likeliest token; higher is more random.", rich_help_panel=SAMPLING)
]
TopK = Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0: all.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Sample from the likeliest tokens with this total probability; 1: all.", rich_help_panel=SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(min=0, max=1, help="Drop tokens less likely than this share of the likeliest.", rich_help_panel=SAMPLING),
]
RepetitionPenalty = Annotated[
    float, typer.Option(min=1, help="Above 1: make repeated tokens less likely.", rich_help_panel=SAMPLING)
]
SampleSeed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed gives the same text.", rich_help_panel=SAMPLING)
]
WeightsFormat = Annotated[
    Literal["f32", "bf16", "int8", "int4"], typer.Option("--weights", help=WEIGHTS_HELP, rich_help_panel=MACHINE)
]


def typed_settings(tokens: str, device: str, precision: str, data: str, settings: list[str]) -> list[dict[str, Any]]:
    """Turn the options of a run into trees of settings."""
    from llamactl.config.schema import parse_assignment
    from llamactl.units import read_count

    typed: list[dict[str, Any]] = [parse_assignment(setting) for setting in settings]
    if tokens:
        typed.append({"train": {"tokens": read_count(tokens)}})
    typed += [{"train": {name: value}} for name, value in (("device", device), ("precision", precision)) if value]
    if data:
        typed.append({"data": {"name": data}})
    return typed


def typed_positions(context: int | None, rope_scaling: str) -> list[dict[str, Any]]:
    """Turn --context and --rope-scaling into trees of settings."""
    from llamactl.config import schema

    typed: list[dict[str, Any]] = [{"model": {"context": context}}] if context else []
    return [*typed, schema.parse_rope_scaling(rope_scaling)] if rope_scaling else typed


def config_of_new_run(preset: str, config: Path | None, typed: list[dict[str, Any]]) -> "Config":
    """Defaults, then the preset, then the file, then what was typed; a file that names its preset needs none."""
    from llamactl.config import schema

    file = schema.load_toml(config) if config else {}
    name = presets_to_try(preset, file, typed)[0]
    return schema.build_config([schema.preset_settings(name), file, *typed, {"preset": name}])


def configs_in_time(preset: str, config: Path | None, typed: list[dict[str, Any]]) -> "tuple[Config, ...]":
    """Build the configs that --time chooses from: that of the preset, or those of all presets that the data can feed."""
    from llamactl.config import schema

    file = schema.load_toml(config) if config else {}
    return tuple(config_of_new_run(name, config, typed) for name in presets_to_try(preset, file, typed))


def presets_to_try(preset: str, file: "Mapping[str, Any]", typed: "Iterable[Mapping[str, Any]]") -> tuple[str, ...]:
    """Return the preset that was typed or is in a file; else those that the dataset can feed, the largest first.

    Without a dataset this is 150m.
    """
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.errors import DataError

    name = preset or file.get("preset", "auto")
    if name != "auto":
        return (name,)
    try:
        info = DatasetDir.from_name(named_dataset([file, *typed])).info()
    except DataError:  # which is told when the dataset is opened
        return ("150m",)
    from llamactl.planning.defaults import feedable_presets

    return feedable_presets(info)


def config_of_init_from(init_from: str, preset: str, config: Path | None, typed: list[dict[str, Any]]) -> "Config":
    """Build the config of a run that starts from a checkpoint; raises UsageError when a preset is named too."""
    from llamactl.config import schema
    from llamactl.errors import UsageError
    from llamactl.training.init_from import config_from_checkpoint

    if preset:
        why = "--init-from brings the shape of its checkpoint, so there is nothing left for a preset to say."
        raise UsageError("--preset and --init-from exclude each other.", why, "Leave --preset out.")
    return config_from_checkpoint(init_from, [schema.load_toml(config) if config else {}, *typed])

"""What was typed about a run: the options that several commands share, and the config that they add up to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamactl.cli import completion

if TYPE_CHECKING:
    from llamactl.artifacts import RunDir
    from llamactl.config import Config

# Headings under which options stand in the help.
RUN, START, MACHINE, SAID = "The run", "Where it starts", "The machine", "What is said"

INIT_HELP = "Start from a checkpoint: RUN, RUN@STEP, RUN@best or its folder."
SCALING_HELP = "none, or linear:F to divide positions by F. Left out: as much as --context outgrows the checkpoint's."
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
        help="tiny, 10m, 50m, 150m, 350m, 1b, 7b, notebook.", show_default="150m", rich_help_panel=RUN,
        autocompletion=completion.presets,
    ),
]  # fmt: skip
Tokens = Annotated[str, typer.Option(help="Budget: 256000, 256k, 1.5B.", show_default="the preset's", rich_help_panel=RUN)]
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
RopeScaling = Annotated[str, typer.Option(help=SCALING_HELP, show_default=False, rich_help_panel=START)]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", show_default="auto", rich_help_panel=MACHINE)]
PrecisionName = Annotated[str, typer.Option(help="auto, bf16, fp32, fp16.", show_default="auto", rich_help_panel=MACHINE)]
ParallelWay = Annotated[str, typer.Option(help="auto, ddp, fsdp, hsdp, hsdp:N.", show_default="auto", rich_help_panel=MACHINE)]

# Settings of [train] that a resumed run may change: what it computes on, how, and how often it looks up.
MAY_CHANGE = {
    "device", "precision", "parallel", "micro_batch", "compile", "recompute", "deterministic",
    "eval_every", "save_every", "keep", "keep_every", "prompts", "sample_tokens",
}  # fmt: skip


def overrides(tokens: str, device: str, precision: str, data: str, settings: list[str]) -> list[dict[str, Any]]:
    """What was typed, as trees of settings."""
    from llamactl.config import assignment
    from llamactl.quantities import read_count

    typed: list[dict[str, Any]] = [assignment(setting) for setting in settings]
    if tokens:
        typed.append({"train": {"tokens": read_count(tokens)}})
    typed += [{"train": {name: value}} for name, value in (("device", device), ("precision", precision)) if value]
    if data:
        typed.append({"data": {"name": data}})
    return typed


def positions(context: int | None, rope_scaling: str) -> list[dict[str, Any]]:
    """What was typed about positions, as trees of settings."""
    from llamactl import config

    typed: list[dict[str, Any]] = [{"model": {"context": context}}] if context else []
    return [*typed, config.rope_scaling(rope_scaling)] if rope_scaling else typed


def fresh(preset: str, config: Path | None, typed: list[dict[str, Any]]) -> "Config":
    """Defaults, then the preset, then the file, then what was typed; a file that names its preset needs none."""
    from llamactl import config as settings

    file = settings.load(config) if config else {}
    name = preset or file.get("preset", "150m")
    return settings.build([settings.preset(name), file, *typed, {"preset": name}])


def continued(init_from: str, preset: str, config: Path | None, typed: list[dict[str, Any]]) -> "Config":
    """As `fresh`, with a checkpoint in the preset's place; raises BadUsage when both are named."""
    from llamactl import config as settings
    from llamactl.errors import BadUsage
    from llamactl.training.origin import continuation

    if preset:
        why = "--init-from brings the shape of its checkpoint, so there is nothing left for a preset to say."
        raise BadUsage("--preset and --init-from exclude each other.", why, "Leave --preset out.")
    return continuation(init_from, [settings.load(config) if config else {}, *typed])


def resumed(folder: "RunDir", typed: list[dict[str, Any]]) -> "Config":
    """The run's own config with what may change laid over it; raises BadUsage for anything else."""
    from llamactl.config import build
    from llamactl.errors import BadUsage

    before = folder.config()
    after = build([before.model_dump(), *typed])
    for section, old in before.model_dump(exclude={"preset"}).items():
        new = after.model_dump()[section]
        free = (
            MAY_CHANGE | ({"tokens"} if new.get("tokens", 0) > old.get("tokens", 0) else set()) if section == "train" else set()
        )
        changed = [key for key in old if old[key] != new[key] and key not in free]
        if changed:
            differ = ", ".join(f"{section}.{key}: {old[key]} -> {new[key]}" for key in changed)
            fix = "Leave it as it was, or start a new run without --resume. The budget, train.tokens, may grow."
            raise BadUsage(f"A resumed run can't change {differ}.", "It would no longer be the same run.", fix)
    return after

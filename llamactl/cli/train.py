"""llamactl train: token shards become a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llamactl.artifacts import RunDir
    from llamactl.config import Config

RESUME_HELP = "With --resume: the run to go on with."
DATA_HELP = "Dataset under data/."
DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps."
PRESET_HELP = "tiny, 10m, 50m, 150m, 350m, 1b, notebook."
INIT_HELP = "Start from a checkpoint: RUN, RUN@STEP, RUN@best or its folder."
SCALING_HELP = "none, or linear:F to divide positions by F. Left out: as much as --context outgrows the checkpoint's."
SET_HELP = "SECTION.KEY=VALUE, any setting of config.toml; repeatable. Example: --set optim.lr=1e-3"

# Settings of [train] that a resumed run may change: what it computes on, how, and how often it looks up.
MAY_CHANGE = {
    "device", "precision", "micro_batch", "compile", "recompute", "deterministic",
    "eval_every", "save_every", "keep", "keep_every", "prompts", "sample_tokens",
}  # fmt: skip


def train(
    to_resume: Annotated[str, typer.Argument(metavar="RUN", help=RESUME_HELP, show_default="the newest")] = "",
    data: Annotated[str, typer.Option(help=DATA_HELP, show_default="the newest")] = "",
    run: Annotated[str, typer.Option(help="Name of the run.", show_default="date-preset")] = "",
    preset: Annotated[str, typer.Option(help=PRESET_HELP, show_default="150m")] = "",
    tokens: Annotated[str, typer.Option(help="Budget: 256000, 256k, 1.5B.", show_default="the preset's")] = "",
    config: Annotated[Path | None, typer.Option(help="A config.toml to start from.", show_default=False)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, show_default=False)] = None,
    init_from: Annotated[str, typer.Option(metavar="CHECKPOINT", help=INIT_HELP, show_default=False)] = "",
    context: Annotated[int | None, typer.Option(min=1, help="Tokens in a window.", show_default="the shape's")] = None,
    rope_scaling: Annotated[str, typer.Option(help=SCALING_HELP, show_default=False)] = "",
    device: Annotated[str, typer.Option(help=DEVICE_HELP, show_default="auto")] = "",
    precision: Annotated[str, typer.Option(help="auto, bf16, fp32, fp16.", show_default="auto")] = "",
    deterministic: Annotated[bool, typer.Option("--deterministic", help="On a GPU: the same bits every time, slower.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run from its newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.")] = False,
) -> None:
    """Train a Llama on a prepared dataset."""
    from llamactl.artifacts import RunDir
    from llamactl.errors import BadUsage

    if to_resume and not resume:
        raise BadUsage(f"What is {to_resume!r}?", "A run is named before training with --run, afterwards with --resume.")
    if resume and (preset or config or init_from):
        fix = "Leave --preset, --config and --init-from out."
        raise BadUsage("A resumed run keeps its preset, its config and where it started from.", "", fix)
    typed = [*overrides(tokens, device, precision, data, settings or []), *positions(context, rope_scaling)]
    typed += [{"train": {"deterministic": True}}] if deterministic else []
    if resume:
        folder = RunDir.named(to_resume or run).existing()
        chosen = resumed(folder, typed)
    else:
        chosen = continued(init_from, preset, config, typed) if init_from else fresh(preset, config, typed)
        folder = RunDir.named(run) if run else RunDir.fresh("continued" if chosen.train.init_from else chosen.preset)
        if folder.config_path.exists() and not dry_run:
            fix = f"Choose another --run, or go on with it: llamactl train --resume {folder.path.name}"
            raise BadUsage(f"The run {folder.path.name} is there already.", "", fix)
    execute(chosen, folder, resume, dry_run, json)


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


def execute(config: "Config", folder: "RunDir", resume: bool, dry_run: bool, json: bool) -> None:
    """Say what is about to happen, then let it happen, in a folder that no other process writes to."""
    from contextlib import closing

    from llamactl import durable
    from llamactl.artifacts import DatasetDir
    from llamactl.cli.training_screen import TrainingScreen, show_plan
    from llamactl.corpus.verify import alongside
    from llamactl.training.environment import environment
    from llamactl.training.log import record
    from llamactl.training.meter import peak_rate
    from llamactl.training.origin import anchored
    from llamactl.training.plan import check_disk, plan, resolve
    from llamactl.training.trainer import train as run_training
    from llamactl.training.wishes import listening
    from llamactl.training.world import join

    with listening() as wishes:
        data = DatasetDir.named(config.data.name)
        dataset = data.open()
        world = join(config.train)
        config = resolve(config if resume else anchored(config, dataset), dataset, world)
        rate = peak_rate(world)
        planned = plan(config, dataset, world, rate)
        show_plan(planned, config, dataset, world, folder)
        if dry_run:
            return
        check_disk(planned, config, folder)
        with durable.locked(folder.lock_path):
            folder.start(config, environment(config, dataset, world), again=resume)
            screen = TrainingScreen(planned, folder, json)
            with screen, closing(run_training(config, dataset, folder, world, rate, wishes)) as events:
                for event in alongside(record(events, folder), data):
                    screen.show(event)
    if screen.stopped:
        raise typer.Exit(128 + screen.stopped)

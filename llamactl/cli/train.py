"""llamactl train: token shards become a model."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli import completion
from llamactl.cli.settings import (
    MACHINE,
    RUN,
    SAID,
    START,
    ConfigFile,
    Context,
    DataName,
    DeviceName,
    InitFrom,
    PrecisionName,
    PresetName,
    RopeScaling,
    Settings,
    Tokens,
    continued,
    fresh,
    overrides,
    positions,
    resumed,
)

if TYPE_CHECKING:
    from llamactl.artifacts import RunDir
    from llamactl.config import Config

RESUME_HELP = "With --resume: the run to go on with."
BITS_HELP = "On a GPU: the same bits every time, slower."
TRACK_HELP = "Show it elsewhere too, with commas between: tensorboard, wandb, trackio."


def train(
    to_resume: Annotated[
        str, typer.Argument(metavar="RUN", help=RESUME_HELP, show_default="the newest", autocompletion=completion.runs)
    ] = "",
    data: DataName = "",
    run: Annotated[
        str,
        typer.Option(help="Name of the run.", show_default="date-preset", rich_help_panel=RUN, autocompletion=completion.runs),
    ] = "",
    preset: PresetName = "",
    tokens: Tokens = "",
    config: ConfigFile = None,
    settings: Settings = None,
    init_from: InitFrom = "",
    context: Context = None,
    rope_scaling: RopeScaling = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run from its newest checkpoint.", rich_help_panel=START)
    ] = False,
    device: DeviceName = "",
    precision: PrecisionName = "",
    deterministic: Annotated[bool, typer.Option("--deterministic", help=BITS_HELP, rich_help_panel=MACHINE)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.", rich_help_panel=SAID)] = False,
    track: Annotated[str, typer.Option(metavar="NAMES", help=TRACK_HELP, show_default=False, rich_help_panel=SAID)] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.", rich_help_panel=SAID)
    ] = False,
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
    execute(chosen, folder, resume, dry_run, json, track.split(",") if track else [])


def execute(config: "Config", folder: "RunDir", resume: bool, dry_run: bool, json: bool, track: list[str]) -> None:
    """Say what is about to happen, then let it happen, in a folder that no other process writes to."""
    from contextlib import closing
    from dataclasses import asdict

    from llamactl import durable
    from llamactl.artifacts import DatasetDir
    from llamactl.cli.receipt import receipt, show_memory
    from llamactl.cli.training_screen import TrainingScreen
    from llamactl.cli.watch import course_of
    from llamactl.corpus.verify import alongside
    from llamactl.training.environment import environment
    from llamactl.training.followers import open_trackers, tracked
    from llamactl.training.log import record
    from llamactl.training.meter import peak_rate
    from llamactl.training.origin import anchored
    from llamactl.training.plan import check_disk, resolve
    from llamactl.training.trainer import train as run_training
    from llamactl.training.wishes import listening
    from llamactl.training.world import join

    with listening() as wishes:
        data = DatasetDir.named(config.data.name)
        dataset, world = data.open(), join(config.train)
        config = resolve(config if resume else anchored(config, dataset), dataset, world)
        followers = open_trackers(track, folder, config.model_dump(mode="json"))
        rate = peak_rate(world)
        planned = receipt(config, dataset, world, rate, folder)
        if dry_run:
            show_memory(planned.memory)
            return
        check_disk(planned, config, folder)
        with durable.locked(folder.lock_path):
            folder.start(config, environment(config, dataset, world), again=resume)
            folder.keep_plan(asdict(planned))
            screen = TrainingScreen(course_of(folder), folder, json, wishes)
            with screen, closing(run_training(config, dataset, folder, world, rate, wishes)) as events:
                for event in alongside(tracked(record(events, folder), followers), data):
                    screen.show(event)
    if screen.stopped:
        raise typer.Exit(128 + screen.stopped)

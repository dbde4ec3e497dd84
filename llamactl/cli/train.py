"""llamactl train: token shards become a model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamactl.cli import completion
from llamactl.cli.execution import Chosen, execute
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
    ParallelWay,
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
        # torchrun takes --run for an option of its own, --run-path.
        typer.Option(
            "--run",
            "--name",
            help="Name of the run.",
            show_default="date-preset",
            rich_help_panel=RUN,
            autocompletion=completion.runs,
        ),
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
    parallel: ParallelWay = "",
    deterministic: Annotated[bool, typer.Option("--deterministic", help=BITS_HELP, rich_help_panel=MACHINE)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.", rich_help_panel=SAID)] = False,
    track: Annotated[str, typer.Option(metavar="NAMES", help=TRACK_HELP, show_default=False, rich_help_panel=SAID)] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.", rich_help_panel=SAID)
    ] = False,
) -> None:
    """Train a Llama on a prepared dataset."""
    from llamactl.errors import BadUsage
    from llamactl.training.launch import launch

    if to_resume and not resume:
        raise BadUsage(f"What is {to_resume!r}?", "A run is named before training with --run, afterwards with --resume.")
    if resume and (preset or config or init_from):
        fix = "Leave --preset, --config and --init-from out."
        raise BadUsage("A resumed run keeps its preset, its config and where it started from.", "", fix)
    typed = [*overrides(tokens, device, precision, data, settings or []), *positions(context, rope_scaling)]
    typed += [{"train": {"parallel": parallel}}] if parallel else []
    typed += [{"train": {"deterministic": True}}] if deterministic else []

    def choose() -> Chosen:
        begun = begun_before(run)
        if resume or begun:
            return gone_on(begun or to_resume or run, typed)
        chosen = continued(init_from, preset, config, typed) if init_from else fresh(preset, config, typed)
        return Chosen(chosen, new(run or chosen, dry_run), False)

    trackers = track.split(",") if track else []
    if launch().size == 1:
        execute(choose(), dry_run, json, trackers)
        return
    from llamactl.training.world import led, together

    with together():
        execute(led(choose), dry_run, json, trackers)


def gone_on(name: str, typed: list[dict[str, Any]]) -> Chosen:
    """A run that is there, with what was typed laid over its config."""
    from llamactl.artifacts import RunDir

    folder = RunDir.named(name).existing()
    return Chosen(resumed(folder, typed), folder, True)


def new(name: "str | Config", dry_run: bool) -> "RunDir":
    """The folder of a name, or one named by date and preset; raises BadUsage when it is taken."""
    from llamactl.artifacts import RunDir
    from llamactl.errors import BadUsage

    if not isinstance(name, str):
        return RunDir.fresh("continued" if name.train.init_from else name.preset)
    folder = RunDir.named(name)
    if folder.config_path.exists() and not dry_run:
        fix = f"Choose another --run, or go on with it: llamactl train --resume {name}"
        raise BadUsage(f"The run {name} is there already.", "", fix)
    return folder


def begun_before(name: str) -> str:
    """The run that this very command began in this very job before torchrun started it again; empty when there is none."""
    from llamactl.artifacts import RunDir
    from llamactl.training.environment import command
    from llamactl.training.launch import launch

    if not launch().job and not launch().restarts:
        return ""
    runs = [run for run in ([RunDir.named(name)] if name else RunDir.all()) if run.config_path.exists()]
    made = {run.path.name: run.environment() for run in runs}
    begun = (command(), launch().job)
    return next((run for run, by in made.items() if (by.get("command"), by.get("job")) == begun), "")

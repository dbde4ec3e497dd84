"""llamactl train: token shards become a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
    from llamactl.artifacts import Dataset, DatasetDir, RunDir
    from llamactl.config import Config
    from llamactl.training.events import Event
    from llamactl.training.followers import Follower
    from llamactl.training.plan import Plan
    from llamactl.training.wishes import Wishes
    from llamactl.training.world import World

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


class Chosen(NamedTuple):
    """What is to be trained, where, and whether that is there already."""

    config: "Config"
    folder: "RunDir"
    again: bool


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


def same_everywhere(dataset: "Dataset", digest: str) -> None:
    """Whether this machine's copy of the data is the first one's; raises BadData."""
    from llamactl.errors import BadData

    if dataset.info.digest != digest:
        fix = f"Copy data/{dataset.name} from the first machine, then: llamactl verify data/{dataset.name}"
        raise BadData(f"The dataset {dataset.name} is not the same on all machines.", "Its digest is another one here.", fix)


def settle(chosen: Chosen, dataset: "Dataset", world: "World") -> "tuple[int, Config]":
    """How many processes share one copy of the model, and the config with everything worked out."""
    from llamactl.training.origin import anchored
    from llamactl.training.plan import arranged, resolve

    config = chosen.config if chosen.again else anchored(chosen.config, dataset)
    world = arranged(config, dataset, world)
    return world.shards, resolve(config, dataset, world)


def execute(chosen: Chosen, dry_run: bool, json: bool, track: list[str]) -> None:
    """Say what is about to happen, then let it happen; of several processes one says and writes it, and all take part."""
    from contextlib import closing
    from dataclasses import replace

    from llamactl.artifacts import DatasetDir
    from llamactl.cli.receipt import receipt, show_memory
    from llamactl.training.followers import open_trackers
    from llamactl.training.meter import peak_rate
    from llamactl.training.room import check_disk
    from llamactl.training.trainer import train as run_training
    from llamactl.training.wishes import listening
    from llamactl.training.world import join, led

    folder = chosen.folder
    with listening() as wishes:
        data, world = DatasetDir.named(chosen.config.data.name), join(chosen.config.train)
        dataset = data.open()
        same_everywhere(dataset, led(lambda: dataset.info.digest))
        shards, config = led(lambda: settle(chosen, dataset, world))
        world = replace(world, shards=shards)
        rate = led(lambda: peak_rate(world))
        planned = led(lambda: receipt(config, dataset, world, rate, folder))
        if dry_run:
            led(lambda: show_memory(planned.memory))
            return
        led(lambda: check_disk(planned, config, folder))
        trackers = open_trackers(track if world.leads else [], folder, config.model_dump(mode="json"))
        with closing(run_training(config, dataset, folder, world, rate, wishes)) as events:
            if world.leads:
                with written(chosen._replace(config=config), dataset, world, planned):
                    stopped = show(events, data, folder, json, wishes, trackers)
            else:
                stopped = follow(events)
    if stopped:
        raise typer.Exit(128 + stopped)


@contextmanager
def written(chosen: Chosen, dataset: "Dataset", world: "World", planned: "Plan") -> Iterator[None]:
    """A context in which no other process writes to the run, which begins with what it is and what is expected of it."""
    from dataclasses import asdict

    from llamactl import durable
    from llamactl.training.environment import environment

    config, folder, again = chosen
    with durable.locked(folder.lock_path):
        folder.start(config, environment(config, dataset, world), again)
        folder.keep_plan(asdict(planned))
        yield


def show(
    events: "Iterator[Event]", data: "DatasetDir", folder: "RunDir", json: bool, wishes: "Wishes", trackers: "list[Follower]"
) -> int:
    """Log events, draw them and pass them on to trackers; the answer is the signal that stopped them, if one did."""
    from llamactl.cli.training_screen import TrainingScreen
    from llamactl.cli.watch import course_of
    from llamactl.corpus.verify import alongside
    from llamactl.training.followers import tracked
    from llamactl.training.log import record

    with TrainingScreen(course_of(folder), folder, json, wishes) as screen:
        for event in alongside(tracked(record(events, folder), trackers), data):
            screen.show(event)
    return screen.stopped


def follow(events: "Iterator[Event]") -> int:
    """Take part without a word; the answer is the signal that stopped the run, if one did."""
    from llamactl.training.events import Stopped

    return max((event.signal for event in events if isinstance(event, Stopped)), default=0)

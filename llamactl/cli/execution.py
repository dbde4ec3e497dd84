"""A run once it is known what is wanted: settled by the first process, computed by all, shown and written by the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    from llamactl.artifacts import Dataset, DatasetDir, RunDir
    from llamactl.config import Config
    from llamactl.training.events import Event
    from llamactl.training.followers import Follower
    from llamactl.training.plan import Plan
    from llamactl.training.wishes import Wishes
    from llamactl.training.world import World


class Chosen(NamedTuple):
    """What is to be trained, where, and whether that is there already."""

    config: "Config"
    folder: "RunDir"
    again: bool


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

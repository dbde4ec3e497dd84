"""Run training in one or many processes: rank 0 resolves the config, shows and writes; all ranks compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGTERM
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    from llamactl.config.schema import Config
    from llamactl.corpus.dataset import Dataset, DatasetDir
    from llamactl.distributed.context import World
    from llamactl.metrics.tracker_thread import TrackerThread
    from llamactl.planning.plan import Plan
    from llamactl.runs.run_dir import RunDir
    from llamactl.storage.folder_guard import FolderGuard
    from llamactl.training.events import Event
    from llamactl.training.signals import StopRequests
    from llamactl.training.timed_budget import Choice


class TrainingRequest(NamedTuple):
    """The config to train, the folder of the run, and whether it exists and is resumed.

    Where a time is given instead of a budget, in `seconds`, the config is chosen from `configs` when the device is known.
    """

    config: "Config"
    folder: "RunDir"
    again: bool
    seconds: float = 0.0
    configs: "tuple[Config, ...]" = ()


def check_same_on_all_machines(dataset: "Dataset", digest: str) -> None:
    """Check that this machine's copy of the data is that of rank 0; raises DataError."""
    from llamactl.errors import DataError

    if dataset.info.digest != digest:
        fix = f"Copy data/{dataset.name} from the first machine, then: llamactl verify data/{dataset.name}"
        raise DataError(f"The dataset {dataset.name} is not the same on all machines.", "Its digest differs here.", fix)


def resolve_run(
    chosen: TrainingRequest, dataset: "Dataset", world: "World", rate: float, requests: "StopRequests | None"
) -> "tuple[int, Choice]":
    """Resolve a config; return the number of shards of the model, and the config without placeholders with its rate.

    Steps are timed where a time was given, unless there is nobody to stop them (`requests`), as in a dry run.
    """
    from llamactl.cli.ui.console import progress
    from llamactl.planning.resolve import choose_sharding, resolve_config
    from llamactl.planning.timed import choose_in_time
    from llamactl.training.init_from import pin_init_from
    from llamactl.training.teachers import pin_teachers, pin_teachers_where_they_fit
    from llamactl.training.timed_budget import Choice, choose_budget

    config = chosen.config if chosen.again else pin_init_from(chosen.config, dataset)
    if not chosen.seconds:
        budget = Choice(pin_teachers(config, dataset, chosen.again), rate, measured=False)
    else:
        configs = pin_teachers_where_they_fit(chosen.configs or (config,), dataset)
        if requests:
            with progress.status("timing a few steps …"):
                budget = choose_budget(configs, dataset, world, rate, chosen.seconds, requests)
        else:
            budget = Choice(choose_in_time(configs, dataset, world, rate, chosen.seconds), rate, measured=False)
    world = choose_sharding(budget.config, dataset, world)
    return world.shards, budget._replace(config=resolve_config(budget.config, dataset, world))


def plan_run(
    chosen: TrainingRequest, dataset: "Dataset", world: "World", requests: "StopRequests | None"
) -> "tuple[Config, World, float, Plan]":
    """Resolve a config and print its plan; return both, how the world shares the model, and the device's FLOP/s."""
    from dataclasses import replace

    from llamactl.cli.ui.console import progress
    from llamactl.cli.ui.plan_summary import show_plan_summary
    from llamactl.distributed.context import broadcast_from_rank0
    from llamactl.hardware.device import unused_gpu
    from llamactl.hardware.throughput import peak_flops
    from llamactl.training.resumption import steps_done

    # Rank 0 decides for all: free memory and measured FLOP/s differ between ranks, and a config must not.
    rate = broadcast_from_rank0(lambda: peak_flops(world.device, world.precision.dtype))
    shards, (config, reached, measured) = broadcast_from_rank0(lambda: resolve_run(chosen, dataset, world, rate, requests))
    shared = replace(world, shards=shards)
    # Before there is a run that could be resumed; several processes agree on it when they train.
    if requests and requests.stop and world.size == 1 and not chosen.again:
        raise typer.Exit(128 + requests.stop)
    if why := broadcast_from_rank0(lambda: unused_gpu(chosen.config.train.device, world.device)):
        progress.print(f"{why}: it trains on the CPU. To see more: llamactl doctor", style="yellow")
    plan = broadcast_from_rank0(
        lambda: show_plan_summary(
            config, dataset, shared, reached, chosen.folder, measured, steps_done(chosen.folder, config) if chosen.again else 0
        )
    )
    return config, shared, rate, plan


def run_training(chosen: TrainingRequest, dry_run: bool, json: bool, track: list[str], anyway: bool) -> None:
    """Print the plan and train; all ranks take part, rank 0 shows and writes. Exits with 128 + the signal that stopped it.

    A budget beyond sense is refused, unless it is wanted `anyway`.
    """
    from contextlib import ExitStack, closing

    from llamactl.cli.ui.plan_summary import show_memory
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.distributed.context import broadcast_from_rank0, init_device
    from llamactl.metrics.evaluation import evaluate_at_the_end
    from llamactl.metrics.monitor import record_events
    from llamactl.metrics.tracker_thread import open_trackers
    from llamactl.planning.fit import check_fit
    from llamactl.training.signals import handle_signals
    from llamactl.training.trainer import train_run

    folder = chosen.folder
    with handle_signals() as requests, folder.removed_if_unused():
        data, world = DatasetDir.from_name(chosen.config.data.name), init_device(chosen.config.train)
        dataset = data.open()
        check_same_on_all_machines(dataset, broadcast_from_rank0(lambda: dataset.info.digest))
        config, world, rate, planned = plan_run(chosen, dataset, world, None if dry_run else requests)
        if dry_run:
            broadcast_from_rank0(lambda: show_memory(planned.memory))
            return
        broadcast_from_rank0(lambda: check_fit(planned, config, folder, anyway or chosen.again))
        trackers = open_trackers(track if world.is_main else [], folder, config.model_dump(mode="json"))
        with ExitStack() as stack:
            lock = locked_run(chosen._replace(config=config), dataset, world, planned)
            guard = stack.enter_context(lock) if world.is_main else None
            events = stack.enter_context(closing(train_run(config, dataset, folder, world, rate, requests)))
            if guard:
                whole = evaluate_at_the_end(events, folder, dataset, config, world.device)
                logged = record_events(whole, folder, guard, dataset.info.vocab_size)
                stopped = show_training(logged, data, folder, json, requests, trackers)
            else:
                stopped = follow_silently(events)
    if stopped:
        raise typer.Exit(128 + stopped)


@contextmanager
def locked_run(chosen: TrainingRequest, dataset: "Dataset", world: "World", planned: "Plan") -> "Iterator[FolderGuard]":
    """Hold the lock of a run and write its config, environment and plan into its folder.

    Yields a guard, which notices when the folder is moved.
    """
    from llamactl.storage import locks
    from llamactl.storage.folder_guard import RESUME_RUN, guard_folder
    from llamactl.training.start import start_run

    config, folder, resumed = chosen[:3]
    if resumed:
        # Taking the lock would create the folder of a run that was removed.
        folder.check_exists()
    with locks.hold_lock(folder.lock_path), guard_folder(folder.path, RESUME_RUN) as guard:
        start_run(folder, config, dataset, world, planned, resumed)
        yield guard


def show_training(
    events: "Iterator[Event]",
    data: "DatasetDir",
    folder: "RunDir",
    json: bool,
    requests: "StopRequests",
    trackers: "list[TrackerThread]",
) -> int:
    """Show events and pass them to trackers; return the number of the signal that stopped the run, or 0.

    If the dataset is moved, stop the run with a checkpoint and raise FolderMoved. Raises DataError for damaged data.
    """
    from llamactl.cli.ui.training import TrainingScreen
    from llamactl.cli.watch import planned_course
    from llamactl.corpus.verify import verify_in_background
    from llamactl.metrics.tracker_thread import track_events
    from llamactl.storage.folder_guard import RESUME_RUN, guard_folder

    moved = None
    resume = RESUME_RUN.format(name=folder.path.name) + " --data {name}"
    with TrainingScreen(planned_course(folder), folder, json, requests) as screen, guard_folder(data.path, resume) as guard:
        # Damage that is found after the last step still fails the run; a stop request does not wait for the check.
        for event in verify_in_background(track_events(events, trackers), data, patient=lambda: not requests.stop):
            screen.show(event)
            moved = moved or guard.trouble()
            if moved:
                # As if by SIGTERM: the trainer saves a checkpoint before it ends.
                requests.stop = requests.stop or SIGTERM
    if failure := moved or screen.failure:
        raise failure
    return screen.stopped or requests.stop


def follow_silently(events: "Iterator[Event]") -> int:
    """Train without output, on ranks other than 0; return the number of the signal that stopped the run, or 0."""
    from llamactl.training.events import Stopped

    return max((event.signal for event in events if isinstance(event, Stopped)), default=0)

"""llamactl train: train a model on a prepared dataset, or resume a run."""

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamactl.cli import completion
from llamactl.cli.options import (
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
    SeparateDocuments,
    Settings,
    Time,
    Tokens,
    config_of_init_from,
    config_of_new_run,
    configs_in_time,
    typed_positions,
    typed_settings,
)
from llamactl.cli.preconditions import import_torch, require_run, require_settings_and_dataset
from llamactl.cli.run_training import TrainingRequest, run_training

if TYPE_CHECKING:
    from llamactl.config.schema import Config, Tree
    from llamactl.runs.run_dir import RunDir

RESUME_HELP = "With --resume: the run to resume."
BITS_HELP = "On a GPU: bit-identical results every time, but slower."
PATIENCE_HELP = "End after so many validations without a lower loss; sample and export then take the best."
PATIENCE_DEFAULT = "3 where a budget is not asked for and reads the text more than twice"
YES_HELP = "Train even for over 20 epochs or 30 days."
TEACHERS_HELP = "Also learn what these checkpoints predict, separated by commas: runs on the same data with other seeds."
TRACK_HELP = "Also log to trackers, separated by commas: tensorboard, wandb, trackio."


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
    time: Time = "",
    patience: Annotated[
        int | None, typer.Option(min=0, help=PATIENCE_HELP, show_default=PATIENCE_DEFAULT, rich_help_panel=RUN)
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    separate_documents: SeparateDocuments = False,
    teachers: Annotated[str, typer.Option(metavar="RUNS", help=TEACHERS_HELP, show_default=False, rich_help_panel=RUN)] = "",
    init_from: InitFrom = "",
    context: Context = None,
    rope_scaling: RopeScaling = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume a run from its newest checkpoint.", rich_help_panel=START)
    ] = False,
    device: DeviceName = "",
    precision: PrecisionName = "",
    parallel: ParallelWay = "",
    deterministic: Annotated[bool, typer.Option("--deterministic", help=BITS_HELP, rich_help_panel=MACHINE)] = False,
    yes: Annotated[bool, typer.Option("--yes", help=YES_HELP, rich_help_panel=RUN)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.", rich_help_panel=SAID)] = False,
    track: Annotated[str, typer.Option(metavar="NAMES", help=TRACK_HELP, show_default=False, rich_help_panel=SAID)] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.", rich_help_panel=SAID)
    ] = False,
) -> None:
    """Train a Llama on a prepared dataset."""
    from llamactl.distributed.launch import read_launch
    from llamactl.units import read_time

    check_exclusive_options(to_resume, run, resume, time, tokens, bool(preset or config or init_from or time))
    seconds = read_time(time) if time else 0.0
    typed = [*typed_settings(tokens, device, precision, data, settings or []), *typed_positions(context, rope_scaling)]
    typed += [{"train": {"parallel": parallel}}] if parallel else []
    typed += [{"data": {"separate_documents": True}}] if separate_documents else []
    typed += [{"train": {"deterministic": True}}] if deterministic else []
    typed += typed_teachers(teachers)
    typed += [{"train": {"patience": patience}}] if patience is not None else []
    if not (resume or init_from):
        require_settings_and_dataset(preset, config, typed)
    yield_to_others((to_resume or run) if resume else None)

    def choose() -> TrainingRequest:
        # torchrun restarts the same command after a failure: it must resume its run and not begin another.
        restarted = find_restarted_run(run)
        if resume or restarted:
            return resume_run(restarted or to_resume or run, typed)
        chosen = (
            config_of_init_from(init_from, preset, config, typed) if init_from else config_of_new_run(preset, config, typed)
        )
        configs = configs_in_time(preset, config, typed) if time and not init_from else ()
        folder = new_run(run or ("timed" if len(configs) > 1 else chosen), dry_run, bool(run))
        return TrainingRequest(chosen, folder, False, seconds, configs)

    trackers = track.split(",") if track else []
    if read_launch().size == 1:
        chosen = choose()
        import_torch()
        run_training(chosen, dry_run, json, trackers, yes)
        return
    from llamactl.distributed.context import broadcast_from_rank0, process_group

    # Rank 0 chooses for all: the name of a new run contains the time, which differs between ranks.
    with process_group():
        run_training(broadcast_from_rank0(choose), dry_run, json, trackers, yes)


def typed_teachers(names: str) -> "list[Tree]":
    """Return the setting that names separated by commas are, or nothing; raises DataError for a run that does not exist."""
    for name in filter(None, names.split(",")):
        require_run(name)
    return [{"train": {"teachers": names.split(",")}}] if names else []


def check_exclusive_options(to_resume: str, run: str, resume: bool, time: str, tokens: str, chosen: bool) -> None:
    """Raise UsageError for options that exclude one another; `chosen` is what a resumed run keeps."""
    from llamactl.errors import UsageError

    if to_resume and not resume:
        word = shlex.quote(to_resume)
        fix = f"Name a new run: --run {word}, or resume one: --resume {word}"
        raise UsageError(f"Unexpected argument {to_resume!r}.", "", fix)
    if to_resume and run not in ("", to_resume):
        fix = f"As a new run: --init-from {shlex.quote(to_resume)} --run {shlex.quote(run)}"
        raise UsageError(f"{to_resume} can't be resumed as {run}.", "A resumed run keeps its name.", fix)
    if time and tokens:
        raise UsageError("--time and --tokens exclude each other.", "Both are the budget.", "Leave one of them out.")
    if resume and chosen:
        fix = "Leave --preset, --config, --init-from and --time out."
        raise UsageError("A resumed run keeps its preset, its config and its initial checkpoint.", "", fix)


def yield_to_others(resumed: str | None) -> None:
    """Share the cores if other processes keep them busy, and print so; a run that is `resumed` keeps its number of threads."""
    from llamactl.cli.ui.console import progress
    from llamactl.errors import DataError
    from llamactl.hardware.busy import avoid_crowding, describe_busy
    from llamactl.runs.run_dir import RunDir

    recorded: Any = 0
    if resumed is not None:
        with suppress(DataError):  # which is told when the run is opened
            begun = RunDir.from_name(resumed).environment()
            # torchrun gives each of several processes one thread: alone, the run may have all.
            recorded = begun.get("threads") if begun.get("processes", 1) == 1 else 0
    if busy := avoid_crowding(recorded if isinstance(recorded, int) else 0):
        progress.print(f"{describe_busy(busy)}: training gets its share, and the measured peak rate is too low", style="yellow")


def resume_run(name: str, typed: list[dict[str, Any]]) -> TrainingRequest:
    """Build the request to resume a run, with the typed settings; raises UsageError for one that can't change."""
    from llamactl.runs.run_dir import RunDir
    from llamactl.training.resumption import config_of_resumed_run

    folder = RunDir.from_name(name).check_exists()
    return TrainingRequest(config_of_resumed_run(folder, typed), folder, True)


def new_run(name: "str | Config", dry_run: bool, typed: bool) -> "RunDir":
    """Choose the folder of a new run, by its `typed` name or by date and preset; raises UsageError when it exists.

    A name that was not typed is claimed, unless nothing will be written.
    """
    from llamactl.errors import UsageError
    from llamactl.runs.run_dir import RunDir

    if not isinstance(name, str):
        name = "continued" if name.train.init_from else name.preset
    if not typed:
        return RunDir.with_new_name(name) if dry_run else RunDir.claim_new_name(name)
    folder = RunDir.from_name(name)
    if folder.config_path.exists() and not dry_run:
        fix = f"Choose another --run, or resume it: llamactl train --resume {name}"
        raise UsageError(f"The run {name} already exists.", "", fix)
    return folder


def find_restarted_run(name: str) -> str:
    """Find the run that this command started in this job before torchrun restarted it; empty for none."""
    from llamactl.distributed.launch import read_launch
    from llamactl.runs.run_dir import RunDir

    if not read_launch().job and not read_launch().restarts:
        return ""
    from llamactl.training.provenance import redacted_command

    runs = [run for run in ([RunDir.from_name(name)] if name else RunDir.all()) if run.config_path.exists()]
    environments = {run.path.name: run.environment() for run in runs}
    # The same command may be running in other jobs: only both together identify the run.
    origin = (redacted_command(), read_launch().job)
    return next((name for name, record in environments.items() if (record.get("command"), record.get("job")) == origin), "")

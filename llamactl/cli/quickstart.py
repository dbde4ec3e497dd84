"""llamactl quickstart: from text to a model that writes, in one command and the time that is given."""

import math
import shlex
from signal import SIGINT
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli.hints import command_line
from llamactl.cli.steps import FORWARDED, run_step

if TYPE_CHECKING:
    from llamactl.config.schema import Config
    from llamactl.corpus.sources import Source
    from llamactl.runs.run_dir import RunDir

# Seconds for what comes after training: a picture and samples, of which each loads PyTorch.
AFTERWARDS = 10.0
LEAST = 20.0  # seconds of training below which nothing is learned
SMALL = 22 << 20  # bytes of text whose own tokenizer is so small that any time is enough for it
SLOWEST = 1_000  # bytes per second that any machine reads several times
OFTEN = 3  # epochs by an estimate, in fact about two, from which a small text has no more ids than its size suggests


def quickstart(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Files or folders of text.", show_default="the embedded sample")
    ] = None,
    time: Annotated[str, typer.Option(help="Time for all stages: 90s, 10m, 2h.")] = "10m",
) -> None:
    """Make a model of your text in the time you have: prepare, train, plot and sample."""
    from llamactl.cli.ui.console import progress, show_next
    from llamactl.corpus.sources import Reading, open_source
    from llamactl.storage.home import shorten_name
    from llamactl.units import read_time

    seconds, started = read_time(time), monotonic()
    sources = text or ["sample"]
    source = open_source(sources, Reading())
    # What is prepared stays, so that the same command continues.
    again = following = f"llamactl {command_line('quickstart', text or [], ['--time', time])}"
    try:
        tokenizer = tokenizer_for_time(source, seconds)
        # The usual name is that of the usual tokenizer: with another time both may be made of one text.
        suffix = "" if tokenizer == source.tokenizer else f"-{tokenizer.replace(':', '')}"
        name = shorten_name(source.name, len(suffix)) + suffix
        changed = [] if name == source.name else ["--tokenizer", tokenizer, "--name", name]
        run_step(command_line("prepare", sources, changed), lambda: again)
        run = train_until(started + seconds - AFTERWARDS, name, again)
        following = f"llamactl plot-loss {run}"
        run_step(f"plot-loss {run}")
        run_step(command_line("sample", [held_out_prompt(name)], ["--run", run, "--n", "2", "--max-new-tokens", "80"]))
    except KeyboardInterrupt:  # between two steps
        show_next(following, why="Continue")
        raise
    progress.print("\n[bold]That is your own Llama.[/] The prompt is from text that it never saw in training.", markup=True)
    show_next(f"llamactl export web {run}", why="As one page that writes in any browser")
    show_next(f"llamactl {command_line('quickstart', sources, ['--time', longer_time(seconds)])}", why="With more time")


def longer_time(seconds: float) -> str:
    """Return about six times as long, in hours."""
    return f"{max(1, round(6 * seconds / 3600))}h"


def train_until(end: float, name: str, again: str) -> str:
    """Train on a dataset until a time of `monotonic`; return the run. `again` is the command that begins anew."""
    from llamactl.runs.run_dir import RunDir

    folder, begun = RunDir.claim_new_name(name), monotonic()
    with folder.removed_if_unused():
        run_step(
            f"train --data {shlex.quote(name)} --time {max(LEAST, end - begun):.0f}s --run {folder.path.name}",
            # A run that has begun says by itself how it is resumed.
            lambda: "" if folder.config_path.exists() else again,
        )
    return learn_from_several(folder, monotonic() - begun, end, again)


def learn_from_several(first: "RunDir", taken: float, end: float, again: str) -> str:
    """Where the text is used up and time is left, train runs of other seeds, and one that learns from all of them.

    `taken` is what the first run took, in seconds, and `end` a time of `monotonic`. Returns the last run that is complete.
    """
    from llamactl.cli.ui.console import progress
    from llamactl.planning.defaults import affordable_teachers
    from llamactl.runs.metrics_log import last_rows
    from llamactl.training.events import EndedEarly

    config, teachers = first.config(), [first.path.name]
    taught = f"{teachers[0]}-taught"
    # A run that ended early has had as many epochs as pay. One that has teachers may not end early.
    ended = last_rows(first.metrics_path, (EndedEarly.kind,), first.path).get(EndedEarly.kind)
    epochs = math.inf if ended else first.plan()["epochs"]
    whole = taken * config.train.tokens / ended["tokens"] if ended else taken

    def count_affordable(trained: int) -> int:
        return affordable_teachers(config, epochs, taken, whole, end - monotonic(), trained)

    if not count_affordable(1):
        return teachers[0]
    progress.print(
        "\nMore epochs would not help. The rest of the time is for runs with other seeds, and one that learns from all of them."
    )
    try:
        # Asked again each time, as a run may take longer than the first.
        while count_affordable(len(teachers)) > len(teachers):
            run_alike(config, f"{teachers[0]}-{len(teachers) + 1}", len(teachers), [], again)
            teachers.append(f"{teachers[0]}-{len(teachers) + 1}")
        if not count_affordable(len(teachers)):
            return teachers[0]
        run_alike(config, taught, len(teachers), teachers, again)
    except typer.Exit as ended:
        # Stopped by a person; a run that is killed for its memory leaves the first one as it is.
        if ended.exit_code in {128 + number for number in (SIGINT, *FORWARDED)}:
            raise
        progress.print(f"\nThat run ended early. What follows is of {teachers[0]}, which is complete.", style="yellow")
        return teachers[0]
    return taught


def run_alike(config: "Config", name: str, seed: int, teachers: list[str], again: str) -> None:
    """Train a run with the settings of another one and a seed of its own."""
    from llamactl.runs.run_dir import RunDir

    chosen = {
        "train.tokens_per_step": config.train.tokens_per_step,
        "train.dropout": config.train.dropout,
        "train.patience": config.train.patience,
        "train.compile": config.train.compile,
        "optim.weight_decay": config.optim.weight_decay,
        "train.seed": seed,
        "data.seed": seed,
    }
    command = f"train --data {shlex.quote(config.data.name)} --preset {config.preset} --tokens {config.train.tokens}"
    command += "".join(f" --set {setting}={value}" for setting, value in chosen.items())
    command += f" --teachers {','.join(teachers)}" if teachers else ""
    run_step(f"{command} --run {name}", lambda: "" if RunDir.from_name(name).config_path.exists() else again)


def tokenizer_for_time(source: "Source", seconds: float) -> str:
    """Return the tokenizer for as much of a text as can be read in the time: more ids would hardly be seen.

    Text that is read but once or twice has 4,096 at least, as longer tokens let more of it be read (docs/recipe.md).
    """
    from llamactl.corpus.sources import SMALLEST_BPE, default_tokenizer

    smallest = f"bpe:{SMALLEST_BPE}"
    if 0 < source.size <= (SLOWEST * seconds if source.tokenizer == smallest else SMALL):
        return source.tokenizer
    from llamactl.cli.preconditions import import_torch
    from llamactl.config.schema import TrainConfig

    import_torch()
    from llamactl.distributed.context import init_device
    from llamactl.hardware.throughput import peak_flops
    from llamactl.planning.timed import bytes_in_time

    world = init_device(TrainConfig())
    read = bytes_in_time(world, peak_flops(world.device, world.precision.dtype), seconds)
    # The size of a download is not known before.
    chosen = default_tokenizer(min(source.size, read)) if source.size else default_tokenizer(read)
    is_read_again = 0 < OFTEN * source.size < read
    return f"bpe:{2 * SMALLEST_BPE}" if chosen == smallest and not is_read_again else chosen


def held_out_prompt(name: str) -> str:
    """Return how a held-out document of a dataset begins."""
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.corpus.openings import held_out_openings

    dataset = DatasetDir.from_name(name).open()
    return next(iter(held_out_openings(dataset, 1)), "The")

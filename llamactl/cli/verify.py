"""llamactl verify: check datasets and runs for damaged files."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli.preconditions import import_torch

if TYPE_CHECKING:
    from llamactl.runs.run_dir import RunDir

NAMES_HELP = "A dataset or a run: NAME, data/NAME or runs/NAME; the folder of a model, or hf:ORG/NAME."


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=NAMES_HELP, show_default="the newest dataset")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each file.")] = False,
) -> None:
    """Check every file of datasets, runs and models, and name the damaged ones."""
    from llamactl.cli.ui.console import progress, show_json
    from llamactl.errors import DataError

    damaged = []
    for name in names or [""]:
        count = 0
        for file, damage in check_named(name):
            count += 1
            if json:
                show_json({"file": file, "damage": damage or None})
            if damage:
                damaged.append(file)
                progress.print(f"✗ {file}: {damage}", style="red")
        progress.print(f"{count} files of {name or 'the newest dataset'} read")
    if damaged:
        raise DataError(f"{len(damaged)} files are damaged, the first is {damaged[0]}.", "", "Make them again.")


def check_named(name: str) -> Iterator[tuple[str, str]]:
    """Yield each file of a run, a dataset or a model, and what is wrong with it, empty when nothing is."""
    import os

    from llamactl.corpus import verify as datasets
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.runs.run_dir import RunDir

    if name.startswith("hf:") or (name and any(os.path.lexists(Path(name) / file) for file in ("state.json", "config.json"))):
        yield from check_model(name)
        return
    # A bare name that both a run and a dataset have means the run.
    path = PurePath(name)
    run = RunDir.from_name(path.name) if path.name else None
    if run and (path.parent.name == "runs" or (path.parent.name != "data" and os.path.lexists(run.config_path))):
        yield from check_run(run.check_exists())
    else:
        folder = DatasetDir.from_name(path.name)
        if not os.path.lexists(folder.path):
            folder.info()  # raises, with the nearest name
        yield from ((str(folder.path / file), damage) for file, damage in datasets.check_dataset(folder))


def check_model(name: str) -> Iterator[tuple[str, str]]:
    """Yield each file of a model's folder, and what is wrong with it; another program's must be readable, and fit together."""
    import_torch()
    import torch

    from llamactl.checkpoint import format as checkpoint_format
    from llamactl.checkpoint.io import load_model
    from llamactl.checkpoint.select import locate_checkpoint

    folder = locate_checkpoint(name)
    if checkpoint_format.is_foreign(folder):
        load_model(folder, torch.device("cpu"))  # raises what is wrong
    yield from ((str(file), damage) for file, damage in checkpoint_format.check_files(folder))


def files_of_run(run: "RunDir") -> "Iterator[tuple[Path, Callable[[], object]]]":
    """Yield each file of a run but its checkpoints, with what reads it; plan, scores and picture only where there are any."""
    import os
    from functools import partial

    from llamactl.runs.scores import read_scores
    from llamactl.storage.records import check_file

    yield run.config_path, run.config
    yield run.environment_path, run.environment
    for log in (run.metrics_path, run.samples_path):
        yield log, partial(read_all, log, run.path)
    picture = partial(check_file, run.loss_path, run.path)
    for path, reading in ((run.plan_path, run.plan), (run.scores_path, partial(read_scores, run)), (run.loss_path, picture)):
        if os.path.lexists(path):
            yield path, reading


def check_run(run: "RunDir") -> Iterator[tuple[str, str]]:
    """Yield each file of a run (config, logs, checkpoints), and what is wrong with it, empty when nothing is."""
    import_torch()
    from llamactl.checkpoint import format as checkpoint_format
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.errors import UserError

    for path, reading in files_of_run(run):
        try:
            reading()
        except UserError as error:
            yield str(path), f"{error.what} {error.why}".strip()
        else:
            yield str(path), ""
    try:
        steps = run.steps()
    except UserError as error:
        yield str(run.checkpoints), f"{error.what} {error.why}".strip()
        return
    for path in map(run.checkpoint, steps):
        before = checkpoint_select.folder_identity(path)
        try:
            files = list(checkpoint_format.check_files(path))
        except OSError:
            if checkpoint_select.folder_identity(path) == before:
                raise
        # Otherwise its trainer has removed the checkpoint meanwhile: nothing in it counts as damage.
        if checkpoint_select.folder_identity(path) == before:
            yield from ((str(file), damage) for file, damage in files)


def read_all(log: Path, root: Path) -> None:
    """Read every row of a log; raises DataError at the first damaged one."""
    from llamactl.runs.metrics_log import read_rows

    for _ in read_rows(log, root):
        pass

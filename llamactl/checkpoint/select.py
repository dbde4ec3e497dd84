"""Find a checkpoint by name, and prune old ones."""

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from llamactl.checkpoint.format import STATE, State, is_foreign, is_sound, read_state, read_verified_state
from llamactl.checkpoint.model_hub import PREFIX, download_model
from llamactl.errors import DataError, UserError
from llamactl.runs.run_dir import RunDir, run_of
from llamactl.storage import atomic, locks
from llamactl.storage.records import read_record

T = TypeVar("T")
Verify = Callable[[Path], State]  # raises DataError for a damaged checkpoint
MODEL = "RUN, RUN@STEP, RUN@best, the folder of a model, or hf:ORG/NAME"
# Seconds to retry while a trainer prunes the checkpoints that are read.
PATIENCE = 60
# Errors that say nothing about the content of a file, and may be gone later.
TRANSIENT_ERRORS = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)
# Tries to list and read all checkpoints without one being pruned meanwhile.
ATTEMPTS = 16
STEP = re.compile(r"[0-9]{1,12}")


def find_newest(run: RunDir, verify: Verify = read_verified_state) -> tuple[Path | None, tuple[str, ...]]:
    """Find the newest valid checkpoint, None without one, and describe the damage of newer ones.

    A checkpoint that its trainer prunes while it is read does not count as damaged. Raises OSError for a file that can't be
    read for another reason than its content.
    """
    damaged: list[str] = []
    for _ in range(ATTEMPTS):
        damaged, pruned, steps = [], False, run.steps()
        for path in map(run.checkpoint, reversed(steps)):
            before = folder_identity(path)
            try:
                verify(path)
            except (UserError, OSError) as error:
                # There is a newer checkpoint then: start over.
                pruned = folder_identity(path) != before
                if pruned:
                    break
                _check_access(path)
                if not isinstance(error, UserError):
                    raise
                damaged.append(error.what)
            else:
                return path, tuple(damaged)
        if not pruned and run.steps() == steps:
            break
    return None, tuple(damaged)


def _check_access(folder: Path) -> None:
    """Raise OSError if a file of a folder can't be opened for a reason that says nothing about its content."""
    for file in folder.iterdir() if folder.is_dir() else ():
        # O_NONBLOCK, as opening a FIFO would wait for a writer.
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in TRANSIENT_ERRORS:
                raise


def read_newest_state(run: RunDir) -> State | None:
    """Read the newest state.json with a valid digest, without verifying other files; None without one."""
    for step in reversed(run.steps()):
        with suppress(DataError):
            state = read_record(run.checkpoint(step) / STATE, State)
            if state.with_digest().digest == state.digest:
                return state
    return None


def folder_identity(path: Path) -> tuple[int, ...]:
    """Return device and inode, which tell a folder from a later one of the same name; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino


def find_checkpoint(name: str, verify: Verify = read_verified_state) -> Path:
    """Find a checkpoint by name: RUN, RUN@STEP or RUN@best; an empty RUN is the newest run. Raises DataError.

    RUN is its newest checkpoint; of a run with patience, which stops after its best, it is the best if that is valid.
    """
    run_name, _, suffix = name.partition("@")
    run = RunDir.from_name(run_name).check_exists()
    if not suffix:
        if best := _find_valid_best(run, verify):
            return best
        path, damaged = find_newest(run, verify)
        if path is None:
            raise _no_checkpoint(run, damaged)
        return path
    # The best one is pruned when a better one is saved, also between two looks.
    for _ in range(ATTEMPTS if suffix == "best" else 1):
        step = _stable_best_step(run) if suffix == "best" else int(suffix) if STEP.fullmatch(suffix) else None
        if step is not None and step in run.steps():
            return run.checkpoint(step)
    kept = ", ".join(map(str, run.steps())) or "none"
    raise DataError(f"The run {run.path.name} has no checkpoint {suffix[:40]!r}.", f"It has the steps: {kept}.")


def _find_valid_best(run: RunDir, verify: Verify) -> Path | None:
    """Find the best checkpoint of a run with patience; None where it was not validated yet, or is damaged or pruned."""
    with suppress(UserError, FileNotFoundError):
        if run.config().train.patience > 0 and (step := _stable_best_step(run)) is not None:
            verify(run.checkpoint(step))
            return run.checkpoint(step)
    return None


def _no_checkpoint(run: RunDir, damaged: tuple[str, ...]) -> DataError:
    """Build the error for a run without a valid checkpoint, which names another run that has one."""
    name = run.path.name
    if locks.is_locked(run.lock_path):
        why, fix = "It is training and has saved none yet.", f"Wait for it: llamactl watch {name}"
    else:
        why = damaged[0] if damaged else "It was stopped before its first one."
        fix = f"Resume: llamactl train --resume {name}"
    other = next((item.path.name for item in RunDir.all() if item.path != run.path and item.steps()), "")
    return DataError(f"The run {name} has no checkpoint.", why, f"{fix}, or name another run: {other}" if other else fix)


def retry_while_pruned(name: str, work: Callable[[Path], T], resolve: Callable[[str], Path] | None = None) -> T:
    """Return `work(path)` for the checkpoint that `resolve`, by default `locate_checkpoint`, finds for `name`.

    If a trainer prunes the checkpoint while `work` reads it, find it by name again and retry, for up to a minute.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        path = (resolve or locate_checkpoint)(name)
        before = folder_identity(path)
        try:
            return work(path)
        except (UserError, OSError):
            # Still the same folder: the error has another cause than pruning.
            unchanged = before and folder_identity(path) == before
            if unchanged or time.monotonic() > deadline:
                raise


def locate_checkpoint(name: str, verify: Verify = read_verified_state) -> Path:
    """Find a checkpoint by name, as `find_checkpoint` does, or by the path of its folder; raises DataError.

    `verify` is what a run's newest checkpoint must pass; one that is named by step or folder is verified where it is read.
    """
    if name.startswith(PREFIX):
        return download_model(name)
    path = Path(name)
    if name and (os.path.lexists(path / STATE) or is_foreign(path)):
        return path
    # A single word is a name, unless it is a model in the current folder.
    if len(path.parts) <= 1:
        return find_checkpoint(name, verify)
    why = "It has neither a state.json, as checkpoints here do, nor a config.json, as other programs' models do."
    raise DataError(f"{path} is not a model.", why, f"A model is {MODEL}.")


def describe_model(path: Path, state: State) -> str:
    """Return what a model is called: its run and step, or the folder that another program saved."""
    if not is_foreign(path):
        run = run_of(path)
        return f"{run.path.name if run else path.absolute().name} at step {state.step:,}"
    # The hub's cache: models--org--name/snapshots/commit.
    stored = path.absolute().parent.parent.name
    return stored.removeprefix("models--").replace("--", "/") if stored.startswith("models--") else path.absolute().name


def find_best_step(run: RunDir, is_sound: Callable[[Path], bool] = lambda _: True) -> int | None:
    """Find the step of the valid checkpoint with the lowest validation loss; None without one."""
    losses: dict[int, float] = {}
    for step in run.steps():
        with suppress(DataError):
            loss = read_state(run.checkpoint(step)).validation_loss
            losses |= {} if loss is None else {step: loss}
    # In order of loss, so that usually only one is hashed.
    return next((step for step in sorted(losses, key=lambda step: losses[step]) if is_sound(run.checkpoint(step))), None)


def _stable_best_step(run: RunDir) -> int | None:
    """Find the best step, again if a checkpoint was saved or pruned meanwhile."""
    for _ in range(ATTEMPTS):
        steps, best = run.steps(), find_best_step(run)
        if run.steps() == steps:
            return best
    return best


def prune_checkpoints(run: RunDir, keep: int, every: int = 0, is_sound: Callable[[Path], bool] = is_sound) -> None:
    """Remove checkpoints older than the newest `keep` valid ones, except the best and those at multiples of `every`.

    Damaged checkpoints don't count among the `keep`.
    """
    steps = run.steps()
    kept = list(islice((step for step in reversed(steps) if is_sound(run.checkpoint(step))), keep))
    old = [step for step in steps if step < kept[-1]] if len(kept) == keep else []
    best = find_best_step(run, is_sound) if old else None
    for step in old:
        if step != best and not (every and step % every == 0):
            atomic.remove_folder(run.checkpoint(step))

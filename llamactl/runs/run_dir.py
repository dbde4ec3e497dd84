"""RunDir: the one module that knows the names and formats of a run's files."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llamactl.config.schema import Config, DataConfig, build_config, dump_toml, parse_toml
from llamactl.errors import DataError, UsageError, suggest_nearest
from llamactl.redact import redact_text
from llamactl.runs.metrics_log import read_rows
from llamactl.storage import atomic, disk
from llamactl.storage.home import check_name, folders_with, home_folder, shorten_name
from llamactl.storage.records import list_folder, look_up, read_object, read_text, to_json

# Characters for a number, or for what quickstart adds, after the name of a new run.
ROOM = 8
CHECKPOINT = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class RunDir:
    """The folder of a run, runs/NAME: config.toml, environment.json, metrics.jsonl, samples.jsonl, checkpoints/, loss.png."""

    path: Path

    @classmethod
    def from_name(cls, name: str) -> "RunDir":
        """Return the run with a name, or the newest one for an empty name; raises DataError for an invalid name or no runs."""
        folders = home_folder() / "runs"
        if name:
            return cls(folders / check_name(name))
        for newest in cls.all():
            return newest
        raise DataError(f"There is no run in {folders}/ yet.", "", "Make one: llamactl train")

    @classmethod
    def all(cls) -> "list[RunDir]":
        """Return all runs, newest first, without those that are being removed."""
        return [cls(folder) for folder in folders_with(home_folder() / "runs", "config.toml")]

    @classmethod
    def with_new_name(cls, label: str) -> "RunDir":
        """Return a run that does not exist yet, named after the time and a label such as its preset, which may be shortened."""
        return next(run for run in cls._numbered(label) if not run.path.exists())

    @classmethod
    def claim_new_name(cls, label: str) -> "RunDir":
        """Make the folder of a run with a new name, so that no other process takes the same one; raises WriteFailed."""
        return next(run for run in cls._numbered(label) if run._make_folder())

    @classmethod
    def _numbered(cls, label: str) -> "Iterator[RunDir]":
        """Yield runs named after the time and a label, from the second one on with a number."""
        stem = shorten_name(f"{datetime.now():%Y%m%d-%H%M%S}-{label}", ROOM)
        # Not "-2": quickstart names the runs of other seeds so.
        return (cls(home_folder() / "runs" / (stem if number == 1 else f"{stem}.{number}")) for number in range(1, 1000))

    def _make_folder(self) -> bool:
        """Make the folder; return False if it exists. Raises WriteFailed."""
        with disk.wrap_os_errors(self.path):
            disk.make_dirs(self.path.parent)
            try:
                self.path.mkdir()
            except FileExistsError:
                return False
            disk.sync_path(self.path.parent)
        return True

    @contextmanager
    def removed_if_unused(self) -> Iterator[None]:
        """Remove the folder at the end if it is still empty, as after a plan that was refused."""
        try:
            yield
        finally:
            with suppress(OSError):
                self.path.rmdir()

    def check_exists(self) -> "RunDir":
        """Return this run if it has a config; raises DataError that names the run with the nearest name."""
        if not os.path.lexists(self.config_path):
            made = [run.path.name for run in RunDir.all()]
            why = suggest_nearest(self.path.name, made) if made else "There is no run yet."
            raise DataError(f"There is no run {self.path.name!r}.", why, "Make one: llamactl train")
        return self

    @property
    def config_path(self) -> Path:
        """Return the path of the resolved config, which is written before step 0."""
        return self.path / "config.toml"

    @property
    def metrics_path(self) -> Path:
        """Return the path of the metrics log: one event per line, appended."""
        return self.path / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        """Return the path of the samples log: one sample per line, appended."""
        return self.path / "samples.jsonl"

    @property
    def scores_path(self) -> Path:
        """Return the path of the scores of its checkpoints on the suite of `llamactl eval`."""
        return self.path / "scores.json"

    @property
    def lock_path(self) -> Path:
        """Return the path of the lock that the one writing process holds."""
        return self.path / "lock"

    @property
    def loss_path(self) -> Path:
        """Return the path of the plot of the loss."""
        return self.path / "loss.png"

    def config(self) -> Config:
        """Read the config the run was started with; raises DataError that names the file and the setting."""
        path = self.check_exists().config_path
        try:
            return build_config([parse_toml(read_text(path, self.path))])
        except (UsageError, ValueError) as error:
            why = f"{error.what} {error.why}" if isinstance(error, UsageError) else f"{error}."
            raise DataError(f"{path} is damaged.", why) from error

    @property
    def environment_path(self) -> Path:
        """Return the path of the record of the environment: versions, device, command."""
        return self.path / "environment.json"

    def environment(self) -> dict[str, Any]:
        """Read the environment the run was started in: versions, device, command; raises DataError when the file is damaged.

        Secrets in the command are redacted here too, for runs that are older than the redaction.
        """
        found = read_object(self.environment_path, self.path)
        return found | ({"command": redact_text(str(found["command"]))} if "command" in found else {})

    @property
    def plan_path(self) -> Path:
        """Return the path of the plan: the estimates made before step 0."""
        return self.path / "plan.json"

    def plan(self) -> dict[str, Any]:
        """Read the estimates that were made before step 0; raises DataError when the file is missing or damaged."""
        return read_object(self.plan_path, self.path)

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Write the estimates, so that they can be compared with the results later."""
        atomic.write_file(self.plan_path, to_json(plan, indent=2) + "\n")

    def start(self, config: Config, environment: dict[str, Any], again: bool = False) -> None:
        """Write the config and the environment before the run does anything; raises UsageError if it exists, unless `again`.

        The caller holds the run's lock. A resumed run keeps its first environment and stores the config it continues with.
        """
        if self.config_path.exists() and not again:
            fix = f"Choose another --run, or resume it: llamactl train --resume {self.path.name}"
            raise UsageError(f"The run {self.path.name} is there already.", "", fix)
        if not again:
            atomic.write_file(self.environment_path, to_json(environment, indent=2) + "\n")
        atomic.write_file(self.config_path, dump_toml(config))

    def sync_logs(self) -> None:
        """Flush the rows appended to the logs to the disk (fsync)."""
        for path in (self.metrics_path, self.samples_path):
            if path.exists():
                with disk.wrap_os_errors(path):
                    disk.sync_path(path)

    @property
    def checkpoints(self) -> Path:
        """Return the path of the folder of all checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending; a folder with a valid name is complete. Raises DataError."""
        names = list_folder(self.checkpoints, self.path)
        return sorted(int(name[5:]) for name in names if CHECKPOINT.fullmatch(name))

    def set_aside(self) -> list[Path]:
        """List the checkpoints that were found damaged on resume; they are kept for inspection."""
        return sorted(self.checkpoints.glob("damaged-*"))

    def rows(self) -> list[dict[str, Any]]:
        """Read the metrics; the last row of each (kind, step) counts, so that a resumed run reads as one curve.

        All rows are held in memory: `metrics_log.read_columns` and `metrics_log.last_rows` are for logs of any length.
        """
        return list({(row["kind"], row["step"]): row for row in read_rows(self.metrics_path, self.path)}.values())

    def samples(self) -> dict[str, dict[int, str]]:
        """Return the text generated for each prompt by step; the last sample of a step counts."""
        found: dict[str, dict[int, str]] = {}
        for row in read_rows(self.samples_path, self.path):
            found.setdefault(row.get("prompt", ""), {})[row["step"]] = row.get("text", "")
        return found


def run_of(checkpoint: Path) -> RunDir | None:
    """Return the run that a checkpoint belongs to; None for a folder that is not RUN/checkpoints/step-N."""
    path = checkpoint.absolute()
    run = RunDir(path.parent.parent)
    return run if path.parent == run.checkpoints and CHECKPOINT.fullmatch(path.name) else None


def plan_number(plan: object, *keys: str) -> float:
    """Return a number of a plan, which is JSON; 0 where it has none at these keys that is finite and above 0."""
    value = look_up(plan, *keys)
    # Above the largest float: a file may hold an integer of any length.
    is_number = isinstance(value, int | float) and 0 < value <= sys.float_info.max
    return float(value) if is_number else 0.0


def data_settings(checkpoint: Path) -> DataConfig:
    """Return how the run of a checkpoint reads its data; the defaults for a model without a run. Raises DataError."""
    run = run_of(checkpoint)
    return run.config().data if run and os.path.lexists(run.config_path) else DataConfig()

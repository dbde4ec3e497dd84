"""DatasetDir and RunDir: the one file that knows names and formats on disk.

Everything here is read strictly: unknown keys, odd file names and wrong sizes are refused before use.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamactl import durable
from llamactl.config import Config, build, dump, load
from llamactl.errors import BadData, BadUsage, nearest
from llamactl.mapping import Shards
from llamactl.tokenizer import Tokenizer

Split = Literal["train", "val"]


def home() -> Path:
    """The folder that holds data/ and runs/: LLAMACTL_HOME, or the current one."""
    return Path(os.environ.get("LLAMACTL_HOME", "."))


class Record(BaseModel):
    """A frozen piece of JSON on disk that refuses unknown keys and converts nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


T = TypeVar("T", bound=Record)


class Recipe(Record):
    """What a dataset is made from; the same recipe over the same inputs gives the same bytes."""

    source: str
    inputs: str = Field(description="the resolved revision, or a digest of the files' names and sizes")
    tokenizer: str
    text_column: str = "text"
    val_fraction: float = Field(gt=0, lt=1)
    max_tokens: int = Field(0, ge=0, description="0: everything")
    max_doc_bytes: int = Field(0, ge=0, description="longer documents are left out; 0: they are split")
    dedup: bool = Field(False, description="of documents with the same text the first is kept")
    max_bad_docs: int = Field(0, ge=0, description="so many that can't be read are left out; one more is an error")


class Shard(Record):
    """One file of tokens."""

    file: str = Field(pattern=r"^(train|val)/\d{5}\.npy$")
    tokens: int = Field(ge=0)
    documents: int = Field(ge=0)
    text_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def split(self) -> str:
        """The split it belongs to."""
        return self.file.split("/")[0]


class DatasetInfo(Record):
    """dataset.json: written last, so its presence means that the dataset is complete."""

    format: Literal[1] = 1
    recipe: Recipe
    tokenizer: str = Field(description="sha256 of tokenizer.json")
    vocab_size: int = Field(ge=1)
    dtype: Literal["uint16", "uint32"]
    shards: tuple[Shard, ...]
    documents_read: int = Field(ge=0)
    skipped: dict[str, int] = Field(description="documents left out, by reason")
    digest: str = ""

    def sealed(self) -> "DatasetInfo":
        """The same with its digest, which covers every other field."""
        content = self.model_dump_json(exclude={"digest"})
        return self.model_copy(update={"digest": hashlib.sha256(content.encode()).hexdigest()})

    def total(self, split: Split, what: Literal["tokens", "documents", "text_bytes"]) -> int:
        """Sum a count over the shards of a split."""
        return sum(getattr(shard, what) for shard in self.shards if shard.split == split)


@dataclass(frozen=True)
class Dataset:
    """An open dataset: shards that are memory-mapped as they are read, nothing of which is in memory yet."""

    name: str
    info: DatasetInfo
    tokenizer: Tokenizer
    train: Sequence[np.ndarray]
    val: Sequence[np.ndarray]


@dataclass(frozen=True)
class DatasetDir:
    """data/<name>."""

    path: Path

    @classmethod
    def named(cls, name: str) -> "DatasetDir":
        """The dataset of a name; an empty name means the newest complete one."""
        folders = home() / "data"
        if name:
            return cls(folders / _plain(name))
        complete = [path.parent for path in folders.glob("*/dataset.json")]
        if not complete:
            raise BadData(f"There is no dataset in {folders}/ yet.", "", "Make one: llamactl prepare sample")
        return cls(max(complete, key=lambda folder: (folder / "dataset.json").stat().st_mtime_ns))

    @property
    def info_path(self) -> Path:
        """The file that is written last."""
        return self.path / "dataset.json"

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer that made the tokens."""
        return self.path / "tokenizer.json"

    def shard(self, split: Split, piece: int) -> Path:
        """The file of a split's tokens from a piece."""
        return self.path / split / f"{piece:05d}.npy"

    def receipt(self, piece: int) -> Path:
        """What is known of a finished piece until the dataset is sealed."""
        return self.path / ".pieces" / f"{piece:05d}.json"

    @property
    def lock_path(self) -> Path:
        """What the one process that makes all pieces has locked until the dataset is sealed."""
        return self.path / ".pieces" / "lock"

    def twins(self, piece: int) -> Path:
        """Which documents of a piece stand elsewhere already, until the dataset is sealed."""
        return self.path / ".pieces" / f"{piece:05d}.twins.npy"

    def info(self) -> DatasetInfo:
        """Read dataset.json; raises BadData when it is missing or damaged."""
        if not self.info_path.exists():
            made = [path.parent.name for path in (home() / "data").glob("*/dataset.json")]
            why = nearest(self.path.name, made) if made else "There is no dataset yet."
            raise BadData(f"There is no finished dataset {self.path}.", why, "Make one: llamactl prepare --help")
        info = read(self.info_path, DatasetInfo)
        if info.sealed().digest != info.digest:
            raise BadData(f"{self.info_path} is damaged: its digest does not match.", "", self._remake())
        return info

    def open(self) -> Dataset:
        """Check the size of every shard, and the tokenizer's hash."""
        info = self.info()
        if not self.tokenizer_path.exists() or durable.sha256(self.tokenizer_path) != info.tokenizer:
            raise BadData(f"{self.tokenizer_path} is not the one that made these tokens.", "", self._remake())
        tokens = [{shard.file: shard.tokens for shard in info.shards if shard.split == split} for split in ("train", "val")]
        train, val = (Shards(self.path, files, info.dtype) for files in tokens)
        return Dataset(self.path.name, info, Tokenizer(self.tokenizer_path.read_text("utf-8")), train, val)

    def _remake(self) -> str:
        return f"Remove {self.path} and prepare it again."


@dataclass(frozen=True)
class RunDir:
    """runs/<name>: config.toml, environment.json, metrics.jsonl, samples.jsonl, checkpoints/, loss.png."""

    path: Path

    @classmethod
    def named(cls, name: str) -> "RunDir":
        """The run of a name; an empty name means the newest one."""
        folders = home() / "runs"
        if name:
            return cls(folders / _plain(name))
        for newest in cls.all():
            return newest
        raise BadData(f"There is no run in {folders}/ yet.", "", "Make one: llamactl train --tokens 256000")

    @classmethod
    def all(cls) -> "list[RunDir]":
        """Every run, the newest first; what is half removed is none."""
        paths = [path for path in (home() / "runs").glob("*/config.toml") if not path.parent.name.startswith(".")]
        return [cls(path.parent) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)]

    @classmethod
    def fresh(cls, preset: str) -> "RunDir":
        """A run that does not exist yet, named by date and preset."""
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{preset}"
        names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
        return next(run for name in names if not (run := cls(home() / "runs" / name)).path.exists())

    def existing(self) -> "RunDir":
        """Itself, when it has a config; raises BadData that names the nearest run."""
        if not self.config_path.exists():
            made = [run.path.name for run in RunDir.all()]
            why = nearest(self.path.name, made) if made else "There is no run yet."
            raise BadData(f"There is no run {self.path.name!r}.", why, "Make one: llamactl train --tokens 256000")
        return self

    @property
    def config_path(self) -> Path:
        """The resolved config, written before step 0."""
        return self.path / "config.toml"

    @property
    def metrics_path(self) -> Path:
        """One event a line, appended."""
        return self.path / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        """One sample a line, appended."""
        return self.path / "samples.jsonl"

    @property
    def lock_path(self) -> Path:
        """What the one process that writes here has locked."""
        return self.path / "lock"

    @property
    def loss_path(self) -> Path:
        """The picture."""
        return self.path / "loss.png"

    def config(self) -> Config:
        """The config the run was started with."""
        return build([load(self.existing().config_path)])

    @property
    def environment_path(self) -> Path:
        """What it was made with."""
        return self.path / "environment.json"

    def environment(self) -> dict[str, Any]:
        """What the run was started with: versions, device, command; raises BadData when that is damaged."""
        return _json_object(self.environment_path)

    @property
    def plan_path(self) -> Path:
        """What was expected of it."""
        return self.path / "plan.json"

    def plan(self) -> dict[str, Any]:
        """What was expected of the run before its first step; raises BadData when that is missing or damaged."""
        return _json_object(self.plan_path)

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Write down what is expected, to be held against what happens."""
        durable.write(self.plan_path, json.dumps(plan, indent=2) + "\n")

    def start(self, config: Config, environment: dict[str, Any], again: bool = False) -> None:
        """Write what a run is before it does anything; raises BadUsage when it is there and this is not `again`.

        Called with the run's lock held. A run that goes on keeps its first environment; its config is the one it goes on with.
        """
        if self.config_path.exists() and not again:
            fix = f"Choose another --run, or go on with it: llamactl train --resume {self.path.name}"
            raise BadUsage(f"The run {self.path.name} is there already.", "", fix)
        if not again:
            durable.write(self.environment_path, json.dumps(environment, indent=2) + "\n")
        durable.write(self.config_path, dump(config))

    def sync_logs(self) -> None:
        """Have the kernel put the rows that were appended on the disk."""
        for path in (self.metrics_path, self.samples_path):
            if path.exists():
                with durable.explained(path):
                    durable.sync(path)

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.checkpoints / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; a folder with a valid name is complete."""
        names = (path.name for path in self.checkpoints.glob("step-*"))
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8}", name))

    def rows(self) -> list[dict[str, Any]]:
        """The metrics, the last row of each (kind, step) winning, so that a resumed run reads as one curve."""
        return list({(row["kind"], row["step"]): row for row in _json_lines(self.metrics_path)}.values())

    def samples(self) -> dict[str, dict[int, str]]:
        """What each prompt was gone on with, by step, the last one of a step winning."""
        found: dict[str, dict[int, str]] = {}
        for row in _json_lines(self.samples_path):
            found.setdefault(str(row.get("prompt", "")), {})[row["step"]] = str(row.get("text", ""))
        return found


def read(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a record; raises BadData that names the file."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadData(f"{path} is missing or damaged.", str(error).splitlines()[0]) from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{path} is missing or damaged.", str(error)) from error
    if not isinstance(found, dict):
        raise BadData(f"{path} is damaged.", "It is not a JSON object.")
    return found


class _Row(BaseModel):
    """What every row of a log has, whatever else it has."""

    model_config = ConfigDict(strict=True, extra="allow")

    kind: str
    step: int


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that may end in half a line, because its writer was killed."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            _Row.model_validate(row)
        except ValueError as error:
            raise BadData(f"{path}, line {number}, is damaged.", str(error).splitlines()[0]) from error
        yield row


def _plain(name: str) -> str:
    """A name is one folder: no separators, no dots in front."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        raise BadData(f"{name!r} is not a name.", "Names are letters, digits, '-', '_' and '.'.")
    return name

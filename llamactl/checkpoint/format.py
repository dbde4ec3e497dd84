"""Format of a checkpoint: the names of its files, state.json and its digests. Knows no PyTorch, whose import takes seconds."""

import hashlib
import os
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from llamactl.checkpoint.tensor_headers import read_shapes
from llamactl.errors import DataError
from llamactl.storage.records import LARGEST_RECORD, Count, Record, hash_file, read_file, read_object, read_record

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
# Maps each tensor to its file, if there are several.
INDEX = f"{WEIGHTS}.index.json"
# No separators: state.json comes with the checkpoint, and must not name files outside of it.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
# Files that every checkpoint has, besides state.json and one or more files of weights.
REQUIRED = {OPTIMIZER, "config.json", "tokenizer.json"}
WHY_MISSING = {
    WEIGHTS: "Only safetensors are read, as a pickle can run any code: save it with save_pretrained, or merge the adapter.",
    "tokenizer.json": "Only fast tokenizers are read: save it with AutoTokenizer.from_pretrained(...).save_pretrained(...).",
}
# The keys of torch.amp.GradScaler.state_dict().
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


ADDED = ("lowest_loss", "validations_since", "config")


class State(Record):
    """Contents of state.json: the progress of the run, its environment, and the sha256 of each other file of the checkpoint.

    The fields in `ADDED` came later: empty ones are neither written nor part of the digest, so that older digests stay valid.
    """

    format: Literal[2] = 2
    step: Count
    tokens: Count
    seconds: float = Field(ge=0)
    validation_loss: float | None = None
    lowest_loss: float | None = Field(None, description="with patience: the lowest validation loss so far")
    validations_since: Count = Field(0, description="with patience: validations since the lowest one")
    micro_batch: Count = Field(0, description="windows that fit into memory together; 0: unknown")
    scaler: dict[str, int | float] = Field(default_factory=dict, description="fp16 only: the state of the gradient scaler")
    skipped: Count = Field(0, description="consecutive steps up to this one without a finite gradient")
    rollbacks: Count = Field(0, description="rollbacks to an earlier checkpoint")
    jumped: Count = Field(0, description="steps of data that rollbacks skipped")
    environment: dict[str, Any] = Field(default_factory=dict, description="all that can change the numbers of later steps")
    config: dict[str, Any] = Field(default_factory=dict, description="the settings of the run; empty: unknown")
    files: dict[str, str] = Field(default_factory=dict)
    digest: str = ""

    @field_validator("scaler")
    @classmethod
    def _check_scaler(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        if value and value.keys() != SCALER:
            raise ValueError(f"it must have {', '.join(sorted(SCALER))}")
        return value

    @model_serializer(mode="wrap")
    def _omit_what_is_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if value or name not in ADDED}

    def with_digest(self) -> "State":
        """Return a copy with its digest, the sha256 of all other fields."""
        content = self.model_dump_json(exclude={"digest"})
        return self.model_copy(update={"digest": hashlib.sha256(content.encode()).hexdigest()})

    def to_text(self) -> str:
        """Serialize the state as the text of state.json."""
        return self.model_dump_json(indent=1) + "\n"

    @property
    def weights_digest(self) -> str:
        """Return the sha256 of the file of weights, or of the digests of several files; empty without weights."""
        digests = [self.files[name] for name in find_weights(self.files)]
        return hashlib.sha256("".join(digests).encode()).hexdigest() if len(digests) > 1 else "".join(digests)


def is_foreign(path: Path) -> bool:
    """Check whether a folder is a model that another program saved: it has a config.json, and nothing that only is here."""
    own = (STATE, OPTIMIZER)  # one that lost its state.json is a damaged checkpoint, or one that is being removed
    if any(os.path.lexists(path / name) for name in own) or _is_in_run(path):
        return False
    return os.path.lexists(path / "config.json")


def _is_in_run(path: Path) -> bool:
    return path.parent.name == "checkpoints" and os.path.lexists(path.parent.parent / "config.toml")


def checkpoint_root(path: Path) -> Path | None:
    """Return the folder below which no part of a checkpoint may be a link: its run's, or its own outside of a run.

    None for another program's folder: in the hub's cache all its files are links.
    """
    if is_foreign(path):
        return None
    return path.parent.parent if _is_in_run(path) else path


def locate_file(path: Path, name: str) -> Path:
    """Return the path of a file of a checkpoint; in another program's folder links are followed."""
    return (path / name).resolve() if is_foreign(path) else path / name


def describe_foreign(path: Path) -> State:
    """Build the state of a model that another program saved: step 0, and the hashes of its files; raises DataError."""
    names = [WEIGHTS] if os.path.lexists(path / WEIGHTS) else _indexed_files(path)
    missing = [name for name in (*names, "tokenizer.json") if not (path / name).exists()]
    if missing:
        raise DataError(f"{path} has no {missing[0]}.", WHY_MISSING.get(missing[0], "It is listed, and not there."))
    files = {name: hash_file(locate_file(path, name)) for name in (*names, "config.json", "tokenizer.json")}
    return State(step=0, tokens=0, seconds=0.0, files=files)


def _indexed_files(path: Path) -> list[str]:
    """Return the files of weights that an index lists; `WEIGHTS`, which is missing, without an index."""
    if not (path / INDEX).exists():
        return [WEIGHTS]
    listed = read_object(locate_file(path, INDEX)).get("weight_map")
    files = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    if files != find_weights(files) or not files:
        raise DataError(f"{path / INDEX} can't be used.", "It names files of weights that are not model-N-of-M.safetensors.")
    return files


def read_state(path: Path) -> State:
    """Read state.json without checking any digest, or describe another program's folder; raises DataError."""
    if is_foreign(path):
        return describe_foreign(path)
    return read_record(path / STATE, State, checkpoint_root(path))


def read_verified_state(path: Path, unused: Container[str] = ()) -> State:
    """Read the state of a checkpoint and verify the hash of each file but `unused` ones, which the caller must not read.

    Raises DataError for the first damaged one.
    """
    if is_foreign(path):
        return describe_foreign(path)
    for file, damage in check_files(path, unused):
        if damage:
            raise DataError(f"{file} is damaged: {damage}")
    return read_state(path)


def verify_model(path: Path) -> State:
    """Read the state of a checkpoint and verify the files of which a model is loaded; raises DataError."""
    return read_verified_state(path, unused=(OPTIMIZER,))


def check_files(path: Path, unused: Container[str] = ()) -> Iterator[tuple[Path, str]]:
    """Yield each file of a checkpoint but `unused` ones, state.json first, with its damage; empty if it is intact.

    Another program's folder has no hashes to compare with: it is intact when its files can be read.
    """
    if is_foreign(path):
        yield from ((path / name, "") for name in describe_foreign(path).files)
        return
    try:
        state = read_state(path)
        written = read_file(path / STATE, checkpoint_root(path))
    except DataError as error:
        yield path / STATE, f"it can't be read. {error.why}"
        return
    # A renamed folder would let an older checkpoint pass for a newer one.
    renamed = path.name.startswith("step-") and path.name != f"step-{state.step:08d}"
    # The bytes too: a digest of the fields alone would not notice other spacing or order.
    unchanged = state.with_digest().digest == state.digest and state.to_text().encode() == written
    yield path / STATE, "" if unchanged and not renamed else "it was changed after it was written."
    missing = sorted(REQUIRED - state.files.keys()) or ([] if find_weights(state.files) else [WEIGHTS])
    yield from ((path / name, f"{STATE} has no hash for it.") for name in missing)
    for name, digest in state.files.items():
        if name not in unused:
            yield path / name, _damage(path, name, digest)


def _damage(path: Path, name: str, digest: str) -> str:
    """Describe the damage of a file that a state names; empty if it is intact."""
    if not FILE_NAME.fullmatch(name):
        return f"{STATE} names a file that does not belong to a checkpoint."
    holds_tensors = name.endswith(".safetensors")
    try:
        # Before hashing: the header gives the length, so a sparse file of a terabyte is refused at once.
        if holds_tensors:
            read_shapes(path / name, checkpoint_root(path))
        actual = hash_file(path / name, checkpoint_root(path), None if holds_tensors else LARGEST_RECORD)
        return "" if actual == digest else f"its sha256 is not the one in {STATE}."
    except DataError as error:
        return error.why


def is_sound(path: Path) -> bool:
    """Check whether all files of a checkpoint are intact."""
    return not any(damage for _, damage in check_files(path))


def find_weights(files: Iterable[str]) -> list[str]:
    """Select the names of files of weights, sorted; pass those of a state, as other files in the folder have no hash."""
    return sorted(name for name in files if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name))

"""Checkpoints: a folder that Hugging Face's transformers loads as it is, with the optimizer beside the weights.

No pickle: tensors are safetensors, the rest is JSON. state.json is written last and holds the other files' hashes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from llamactl import durable, tensors
from llamactl.artifacts import Record, RunDir, read
from llamactl.config import ModelConfig
from llamactl.errors import BadData, UserError
from llamactl.hugging_face import descriptions, shape
from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
INDEX = f"{WEIGHTS}.index.json"  # which tensor is in which file, where there are several
LARGEST = 5_000_000_000  # bytes of weights in a file, as transformers' save_pretrained has it


class State(Record):
    """state.json: where the run stood, what it ran on, and the sha256 of every other file of the checkpoint."""

    format: Literal[2] = 2
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0)
    validation_loss: float | None = None
    micro_batch: int = Field(0, ge=0, description="windows at once that memory allowed; 0: not known")
    scaler: dict[str, int | float] = Field(default_factory=dict, description="fp16 only: how far gradients are scaled up")
    skipped: int = Field(0, ge=0, description="steps up to this one, without a gap, that had no finite gradient")
    rollbacks: int = Field(0, ge=0, description="times the run went back to a checkpoint")
    jumped: int = Field(0, ge=0, description="steps' worth of data that were left out then")
    environment: dict[str, Any] = Field(default_factory=dict, description="all that can change the numbers to come")
    files: dict[str, str] = Field(default_factory=dict)
    digest: str = ""

    def sealed(self) -> "State":
        """The same with its digest, which covers every other field."""
        content = self.model_dump_json(exclude={"digest"})
        return self.model_copy(update={"digest": hashlib.sha256(content.encode()).hexdigest()})

    def written(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=1) + "\n"

    @property
    def weights_digest(self) -> str:
        """A sha256 that stands for the weights: that of their file, or of the digests of several; empty without any."""
        digests = [self.files[name] for name in find_weights(self.files)]
        return hashlib.sha256("".join(digests).encode()).hexdigest() if len(digests) > 1 else "".join(digests)


class Snapshot(NamedTuple):
    """The tensors of a checkpoint, by the names they have in it."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of them, so that all must take part in saving."""
        return any(map(tensors.sharded, self.weights.values()))

    @property
    def nbytes(self) -> int:
        """The size of what is here of them."""
        return sum(tensors.local(tensor).nbytes for each in self for tensor in each.values())

    def contents(self) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
        """The names of their files and the parts of each; the rows of a sharded tensor are gathered when its turn comes."""
        yield from weight_files(self.weights)
        yield OPTIMIZER, tensors.parts(self.optimizer)

    def gather(self) -> None:
        """Take part in what another process writes."""
        for _, content in self.contents():
            for part in content:
                del part

    def copied(self) -> "Snapshot":
        """The same in main memory, where training does not change it."""
        first, second = ({name: t.to("cpu", copy=True) for name, t in each.items()} for each in self)
        return Snapshot(first, second)

    def finite(self) -> bool:
        """Whether every number here is one."""
        norms = torch._foreach_norm([tensors.local(tensor) for each in self for tensor in each.values()])
        return bool(torch.stack([norm.to(norms[0].device, non_blocking=True) for norm in norms]).isfinite().all())


def snapshot(model: Llama, optimizers: list[Optimizer]) -> Snapshot:
    """The tensors of a run as they are, not copied."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tied:
        del weights["lm_head.weight"]
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    states = (item for optimizer in optimizers for item in optimizer.state.items())
    # Under the names of the weights they belong to: `model.norm.weight:exp_avg`.
    return Snapshot(weights, {f"{names[p]}:{key}": tensor for p, state in states for key, tensor in state.items()})


def save(path: Path, taken: Snapshot, model: ModelConfig, tokenizer: Tokenizer, state: State) -> None:
    """Write a checkpoint folder, which appears complete or not at all."""
    with durable.filling(path) as draft:
        for file, parts in taken.contents():
            draft.write(file, parts)
        for name, content in descriptions(model, tokenizer).items():
            draft.write(name, [content.encode()])
        sealed = state.model_copy(update={"files": dict(sorted(draft.hashes.items()))}).sealed()
        draft.write(STATE, [sealed.written().encode()])


def weight_files(weights: dict[str, Tensor]) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """The names of the files that hold some weights, and the parts of each: one, or several and their index.

    Byte for byte those of transformers' `save_pretrained(max_shard_size=LARGEST)`.
    """
    by_layer = {name: weights[name] for name in sorted(weights, key=_spelled_out)}
    groups = tensors.split(by_layer, LARGEST)
    if len(groups) == 1:
        yield WEIGHTS, tensors.parts(weights)
        return
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        yield name, tensors.parts(group)
    places = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
    numbers, size = sum(map(Tensor.numel, weights.values())), sum(map(tensors.size, weights.values()))
    index = {"metadata": {"total_parameters": numbers, "total_size": size}, "weight_map": places}
    yield INDEX, [(json.dumps(index, indent=2, sort_keys=True) + "\n").encode()]


def _spelled_out(name: str) -> list[str | int]:
    """The words and numbers of a name, by which layer 10 comes after layer 9."""
    return [int(word) if word.isdecimal() else word for word in name.split(".")]


def restore(path: Path, model: Llama, optimizers: list[Optimizer], trusted: bool = False) -> State:
    """Put a checkpoint's weights and optimizer state into place, in a model of the same shape; raises BadData.

    A tensor is read at a time, and of one that is sharded only the part that is here is kept. A `trusted` checkpoint is one
    that `newest` has verified.
    """
    state = read(path / STATE, State) if trusted else verified(path)
    parameters = dict(model.named_parameters())
    for name, found in tensors.shapes(path / OPTIMIZER).items():
        parameter = parameters.get(name.rpartition(":")[0])
        if parameter is None or found not in (parameter.shape, parameter.shape[:1], ()):
            raise BadData(f"{path / OPTIMIZER} does not fit this run.", f"{name} has the shape {list(found)}.")
    _put(path, state, model)
    for optimizer in optimizers:
        optimizer.state.clear()
    owners = {each: optimizer for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    for name, tensor in tensors.each(path / OPTIMIZER):
        parameter = parameters[name.rpartition(":")[0]]
        laid_out = tensors.placed(tensor, parameter) if tensor.ndim else tensor.to(parameter.device, copy=True)
        if parameter in owners:
            owners[parameter].state[parameter][name.rpartition(":")[2]] = laid_out
    return state


def restore_weights(path: Path, model: Llama) -> State:
    """Put a checkpoint's weights into place, and nothing else, in a model whose weights have the same shapes."""
    state = verified(path)
    _put(path, state, model)
    return state


def _put(path: Path, state: State, model: Llama) -> None:
    """Nothing is changed unless all of it fits."""
    alias = {"lm_head.weight"} if model.config.tied else set()
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in alias}
    files = [path / name for name in find_weights(state.files)]
    found = {name: shape for file in files for name, shape in tensors.shapes(file).items()}
    if found != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
        why = "Its tensors have other names or shapes than this run's config asks for."
        raise BadData(f"{path / (INDEX if len(files) > 1 else WEIGHTS)} does not fit this run.", why)
    for file in files:
        for name, tensor in tensors.each(file):
            tensors.put(expected[name], tensor)


def load_model(path: Path, device: torch.device) -> tuple[Llama, Tokenizer, State]:
    """The model of a checkpoint, ready to use, its tokenizer, and where its run stood."""
    state = verified(path)
    config = shape(path)
    with torch.device("meta"):
        model = Llama(config)
    found = weights(path, state.files)
    if config.tied and "model.embed_tokens.weight" in found:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    model.load_state_dict(found, assign=True)
    model.tie()
    return model.to(device).eval(), Tokenizer((path / "tokenizer.json").read_text("utf-8")), state


def verified(path: Path) -> State:
    """The state of a checkpoint whose every file has its hash; raises BadData that names the first that hasn't."""
    for file, damage in verify(path):
        if damage:
            raise BadData(f"{file} is damaged: {damage}")
    return read(path / STATE, State)


def verify(path: Path) -> Iterator[tuple[Path, str]]:
    """Each file of a checkpoint, state.json first, and what is wrong with it, empty when nothing is."""
    try:
        state = read(path / STATE, State)
    except BadData as error:
        yield path / STATE, f"it can't be read. {error.why}"
        return
    moved = path.name.startswith("step-") and path.name != f"step-{state.step:08d}"
    sealed = state.sealed().digest == state.digest and state.written().encode() == (path / STATE).read_bytes()
    yield path / STATE, "" if sealed and not moved else "it is not as it was written."
    for name, digest in state.files.items():
        plain = Path(name).name == name and (path / name).is_file()
        known = plain and durable.sha256(path / name) == digest
        yield path / name, "" if known else f"its sha256 is not the one in {STATE}."


def newest(run: RunDir) -> tuple[Path | None, tuple[str, ...]]:
    """The newest checkpoint that is sound, and what is wrong with newer ones."""
    damaged: list[str] = []
    for step in reversed(run.steps()):
        try:
            verified(run.checkpoint(step))
        except UserError as error:
            damaged.append(error.what)
        else:
            return run.checkpoint(step), tuple(damaged)
    return None, tuple(damaged)


def find(name: str) -> Path:
    """The checkpoint that a person means: RUN, RUN@STEP or RUN@best; an empty RUN is the newest. Raises BadData."""
    run_name, _, which = name.partition("@")
    run = RunDir.named(run_name).existing()
    if not which:
        path, damaged = newest(run)
        if path is None:
            why = damaged[0] if damaged else "It was stopped before its first one."
            raise BadData(f"The run {run.path.name} has no checkpoint.", why, "Go on training: llamactl train --resume")
        return path
    step = best(run) if which == "best" else int(which) if which.isdecimal() else None
    if step not in run.steps():
        kept = ", ".join(map(str, run.steps())) or "none"
        raise BadData(f"The run {run.path.name} has no checkpoint {which!r}.", f"It has the steps: {kept}.")
    return run.checkpoint(step)


def locate(name: str) -> Path:
    """The checkpoint that `find` knows by a name, or the one in the folder of a path; raises BadData."""
    path = Path(name)
    if len(path.parts) <= 1 and not (path / STATE).exists():
        return find(name)
    if not (path / STATE).is_file():
        fix = "A checkpoint is RUN, RUN@STEP, RUN@best or the path of a folder like runs/RUN/checkpoints/step-00000250."
        raise BadData(f"{path} is not a checkpoint.", f"It has no {STATE}.", fix)
    return path


def best(run: RunDir) -> int | None:
    """The step of the checkpoint with the smallest validation loss; one whose state is damaged is none."""
    known: dict[int, float] = {}
    for step in run.steps():
        with suppress(BadData):
            loss = read(run.checkpoint(step) / STATE, State).validation_loss
            known |= {} if loss is None else {step: loss}
    return min(known, key=lambda step: known[step]) if known else None


def prune(run: RunDir, keep: int, every: int = 0) -> None:
    """Remove checkpoints but for the newest `keep`, the best, and those of steps that are multiples of `every`."""
    kept = best(run)
    for step in run.steps()[:-keep]:
        if step != kept and not (every and step % every == 0):
            durable.remove(run.checkpoint(step))


def weights(path: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """All weights in the files of a folder that hold some, as they are stored; raises BadData."""
    return {name: tensor for file in find_weights(files) for name, tensor in tensors.load(path / file).items()}


def find_weights(files: Iterable[str]) -> list[str]:
    """Those of some files that are weights. Ask with what a state names: what else is in its folder has no hash."""
    return sorted(name for name in files if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name))

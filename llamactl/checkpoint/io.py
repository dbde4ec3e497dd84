"""Save and load checkpoints: folders that transformers can load directly, with the optimizer state beside the weights.

No pickle: tensors are safetensors, the rest is JSON. state.json is written last and has the hashes of the other files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from llamactl.checkpoint import safetensors_io
from llamactl.checkpoint.format import (
    INDEX,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    State,
    checkpoint_root,
    find_weights,
    locate_file,
    read_state,
    read_verified_state,
    verify_model,
)
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.checkpoint.huggingface import description_files, read_chat_template, read_model_tokenizer, read_template_names
from llamactl.checkpoint.select import locate_checkpoint, retry_while_pruned
from llamactl.checkpoint.snapshot import Snapshot
from llamactl.checkpoint.tensor_headers import read_shapes
from llamactl.config.schema import ModelConfig
from llamactl.distributed import dtensor
from llamactl.errors import DataError
from llamactl.model.llama import Llama, build_empty
from llamactl.storage import atomic
from llamactl.tokenizer.bpe import Tokenizer

VOCABULARY_WEIGHTS = ("model.embed_tokens.weight", "lm_head.weight")  # they have a row for each id


def save_checkpoint(
    path: Path, taken: Snapshot, model: ModelConfig, tokenizer: Tokenizer, state: State, parents: bool = True
) -> None:
    """Write a checkpoint folder atomically; without `parents` the folder of its run must exist."""
    with atomic.atomic_dir(path, parents) as draft:
        for file, parts in taken.contents():
            draft.write(file, parts)
        for name, content in description_files(model, tokenizer).items():
            draft.write(name, [content.encode()])
        # Last, as it has the hashes of all other files.
        final = state.model_copy(update={"files": dict(sorted(draft.hashes.items()))}).with_digest()
        draft.write(STATE, [final.to_text().encode()])


def restore_checkpoint(path: Path, model: Llama, optimizers: list[Optimizer], trusted: bool = False) -> State:
    """Load the weights and the optimizer state of a checkpoint into a model of the same shape; raises DataError.

    Tensors are read one at a time, and of a sharded one only this rank's rows are kept. The files of a `trusted` checkpoint
    have been verified by the caller and are not hashed again.
    """
    state = read_state(path) if trusted else read_verified_state(path)
    _check_optimizer(path, state, model, optimizers)
    _copy_weights(path, state, model)
    for optimizer in optimizers:
        optimizer.state.clear()
    parameters = dict(model.named_parameters())
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in safetensors_io.iter_tensors(path / OPTIMIZER, checkpoint_root(path)):
        parameter = parameters[name.rpartition(":")[0]]
        if (owner := owners.get(parameter)) is None:
            continue
        # Scalars, AdamW's step counts, are the same on all ranks; only the fused update reads them where the weights are.
        place = parameter.device if owner.defaults.get("fused") else "cpu"
        value = dtensor.shard_like(tensor, parameter) if tensor.ndim else tensor.to(place, copy=True)
        owner.state[parameter][name.rpartition(":")[2]] = value
    return state


def _check_optimizer(path: Path, state: State, model: Llama, optimizers: list[Optimizer]) -> None:
    """Raise DataError unless a checkpoint has optimizer state for each parameter, with the expected shapes."""
    expected: dict[str, tuple[int, ...]] = {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                shapes = _state_shapes(optimizer, group, tuple(parameter.shape))
                expected |= {f"{names[parameter]}:{key}": shape for key, shape in shapes.items()}
    stored = read_shapes(path / OPTIMIZER, checkpoint_root(path))
    # Optimizers create their state at the first update, so all steps may have been skipped. A rollback forgets how many.
    if not stored and (state.step == state.skipped or state.rollbacks):
        return
    for name in sorted(expected.keys() | stored.keys()):
        if stored.get(name) != expected.get(name):
            why = f"{name} has the shape {stored.get(name, 'of nothing')}, not {expected.get(name, 'any')}."
            raise DataError(f"{path / OPTIMIZER} does not fit this run.", why)


def _state_shapes(optimizer: Optimizer, group: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that an optimizer keeps for a parameter of some shape."""
    if isinstance(optimizer, AdamW):
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    return {"momentum": shape} | ({"rows": shape[:1]} if group["normuon_beta2"] else {})


def restore_weights(path: Path, model: Llama, add_ids: Callable[[str, Tensor], Tensor] | None = None) -> State:
    """Load only the weights of a checkpoint into a model of the same shape; raises DataError.

    `add_ids` gets the names and the weights of embedding and head, and returns them with the rows of the model.
    """
    state = read_verified_state(path)
    _copy_weights(path, state, model, add_ids)
    return state


def _copy_weights(path: Path, state: State, model: Llama, add_ids: Callable[[str, Tensor], Tensor] | None = None) -> None:
    """Copy the weights of a checkpoint into a model; raises DataError before any is changed."""
    stored = read_hf_config(path, checkpoint_root(path)).vocab_size if add_ids else model.config.vocab_size
    _check_shapes(path, state, model.config.model_copy(update={"vocab_size": stored}), "does not fit this run")
    expected = model.state_dict()
    for name, tensor in _iter_weights(path, state, model.config):
        dtensor.copy_into(expected[name], add_ids(name, tensor) if add_ids and name in VOCABULARY_WEIGHTS else tensor)


def _iter_weights(path: Path, state: State, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a checkpoint by name, one at a time, without what follows from the others."""
    for file in _weight_files(path, state):
        yield from ((n, t) for n, t in safetensors_io.iter_tensors(file, checkpoint_root(path)) if not _is_derived(n, config))


def _weight_files(path: Path, state: State) -> list[Path]:
    return [locate_file(path, name) for name in find_weights(state.files)]


def _is_derived(name: str, config: ModelConfig) -> bool:
    """Check for what other programs store although it follows: a head tied to the embedding, frequencies of RoPE."""
    return (name == "lm_head.weight" and config.tie_embeddings) or name.endswith("rotary_emb.inv_freq")


def load_model(path: Path, device: torch.device, verified: State | None = None) -> tuple[Llama, Tokenizer, State]:
    """Load a checkpoint, or a folder that another program saved: its model in eval mode and fp32, its tokenizer, its state.

    `verified` is the state if the caller has just verified all files that are used. Raises DataError.
    """
    state, root = verified or verify_model(path), checkpoint_root(path)
    config, tokenizer = read_hf_config(path, root), read_model_tokenizer(path)
    tokenizer.chat_template, tokenizer.template_names = read_chat_template(path), read_template_names(path)
    if tokenizer.vocab_size > config.vocab_size:
        why = f"It has {tokenizer.vocab_size:,} ids; config.json has rows for {config.vocab_size:,}."
        raise DataError(f"{path / 'tokenizer.json'} is not the model's.", why)
    _check_shapes(path, state, config)
    model = build_empty(config)
    # fp32 whatever they are stored in: products of bf16 are exact in it, and a CPU is no slower.
    weights = {name: tensor.float() for name, tensor in _iter_weights(path, state, config)}
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.to(device).eval(), tokenizer, state


def _check_shapes(path: Path, state: State, config: ModelConfig, verdict: str = "is not the model's") -> None:
    """Compare the shapes of a model with the headers of the weights, before it is built; raises DataError."""
    files = _weight_files(path, state)
    stored = {
        name: shape
        for file in files
        for name, shape in read_shapes(file, checkpoint_root(path)).items()
        if not _is_derived(name, config)
    }
    # First by count, as config.json may claim any number of layers, each of which has tensors.
    if config.n_layers > len(stored):
        why = f"It has {config.n_layers:,} layers; the weights beside it have {len(stored):,} tensors."
        raise DataError(f"{path / 'config.json'} is not the model's.", why)
    expected = {
        name: tuple(tensor.shape) for name, tensor in build_empty(config).state_dict().items() if not _is_derived(name, config)
    }
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            found, due = (list(each[name]) if name in each else "missing" for each in (stored, expected))
            why = f"{name} is {found} there, and {due} in a model of that config."
            raise DataError(f"{path / (WEIGHTS if len(files) == 1 else INDEX)} {verdict}.", why)


def open_model(
    name: str, device: torch.device, verified: Mapping[Path, State] | None = None
) -> tuple[Path, Llama, Tokenizer, State]:
    """Find a checkpoint by name and load it as `load_model` does, also while its run is training.

    `verified` has the states of checkpoints whose files the caller has just verified.
    """
    known = dict(verified or {})

    def verify(path: Path) -> State:
        if path not in known:
            known[path] = verify_model(path)
        return known[path]

    def load(path: Path) -> tuple[Path, Llama, Tokenizer, State]:
        return path, *load_model(path, device, known.pop(path, None))

    return retry_while_pruned(name, load, partial(locate_checkpoint, verify=verify))


def load_weights(path: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """Load all weights among `files` of a folder, in the dtype that they are stored in; raises DataError."""
    return {
        name: tensor
        for file in find_weights(files)
        for name, tensor in safetensors_io.load_tensors(path / file, checkpoint_root(path)).items()
    }

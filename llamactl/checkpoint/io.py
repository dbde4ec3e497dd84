"""Save and load checkpoints: folders that transformers can load directly, with the optimizer state beside the weights.

No pickle: tensors are safetensors, the rest is JSON. state.json is written last and has the hashes of the other files.
"""

from collections.abc import Callable, Iterable
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
    Snapshot,
    State,
    checkpoint_root,
    find_weights,
    read_state,
    read_verified_state,
)
from llamactl.checkpoint.huggingface import description_files, read_hf_config
from llamactl.checkpoint.select import retry_while_pruned
from llamactl.config.schema import ModelConfig
from llamactl.distributed import dtensor
from llamactl.errors import DataError
from llamactl.model.llama import Llama
from llamactl.storage import atomic
from llamactl.tokenizer.bpe import Tokenizer, read_tokenizer


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
        # Scalars, such as AdamW's step count, are the same on all ranks.
        value = dtensor.shard_like(tensor, parameter) if tensor.ndim else tensor.to(parameter.device, copy=True)
        if parameter in owners:
            owners[parameter].state[parameter][name.rpartition(":")[2]] = value
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
    stored = safetensors_io.read_shapes(path / OPTIMIZER, checkpoint_root(path))
    # Optimizers create their state at the first update: there is none if all steps were skipped.
    if not stored and state.step == state.skipped:
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


def restore_weights(path: Path, model: Llama) -> State:
    """Load only the weights of a checkpoint into a model of the same shape; raises DataError."""
    state = read_verified_state(path)
    _copy_weights(path, state, model)
    return state


def _copy_weights(path: Path, state: State, model: Llama) -> None:
    """Copy the weights of a checkpoint into a model; raises DataError before any is changed."""
    # A tied head is the embedding, and only that is stored.
    alias = {"lm_head.weight"} if model.config.tie_embeddings else set()
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in alias}
    files, root = [path / name for name in find_weights(state.files)], checkpoint_root(path)
    stored = {name: shape for file in files for name, shape in safetensors_io.read_shapes(file, root).items()}
    if stored != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
        why = "Its tensors have other names or shapes than the config of this run."
        raise DataError(f"{path / (INDEX if len(files) > 1 else WEIGHTS)} does not fit this run.", why)
    for file in files:
        for name, tensor in safetensors_io.iter_tensors(file, root):
            dtensor.copy_into(expected[name], tensor)


def load_model(path: Path, device: torch.device) -> tuple[Llama, Tokenizer, State]:
    """Load a checkpoint: its model in eval mode, its tokenizer and its state; raises DataError."""
    state, root = read_verified_state(path), checkpoint_root(path)
    config, tokenizer = read_hf_config(path, root), read_tokenizer(path / "tokenizer.json", root)
    if tokenizer.vocab_size > config.vocab_size:
        why = f"It has {tokenizer.vocab_size:,} ids; config.json has rows for {config.vocab_size:,}."
        raise DataError(f"{path / 'tokenizer.json'} is not the model's.", why)
    _check_shapes(path, state, config)
    with torch.device("meta"):
        model = Llama(config)
    weights = load_weights(path, state.files)
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.to(device).eval(), tokenizer, state


def _check_shapes(path: Path, state: State, config: ModelConfig) -> None:
    """Compare the shapes of a model with the headers of the weights, before it is built; raises DataError."""
    files = [path / name for name in find_weights(state.files)]
    stored = {name: shape for file in files for name, shape in safetensors_io.read_shapes(file, checkpoint_root(path)).items()}
    # First by count, as config.json may claim any number: 9 tensors per block, the embedding, the last norm, the head.
    if len(stored) != 9 * config.n_layers + (2 if config.tie_embeddings else 3):
        why = f"It has {config.n_layers:,} layers; the weights beside it have {len(stored):,} tensors."
        raise DataError(f"{path / 'config.json'} is not the model's.", why)
    with torch.device("meta"):
        expected = Llama(config).state_dict()
    for name, size in stored.items():
        if name not in expected or tuple(expected[name].shape) != size:
            why = f"{name}, of {list(size)}, has no place in a model as config.json describes it."
            raise DataError(f"{path / WEIGHTS if len(files) == 1 else path / INDEX} is damaged.", why)


def open_model(
    name: str, device: torch.device, resolve: Callable[[str], Path] | None = None
) -> tuple[Path, Llama, Tokenizer, State]:
    """Find a checkpoint by name and load it as `load_model` does, also while its run is training."""
    return retry_while_pruned(name, lambda path: (path, *load_model(path, device)), resolve)


def load_weights(path: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """Load all weights among `files` of a folder, in the dtype that they are stored in; raises DataError."""
    return {
        name: tensor
        for file in find_weights(files)
        for name, tensor in safetensors_io.load_tensors(path / file, checkpoint_root(path)).items()
    }

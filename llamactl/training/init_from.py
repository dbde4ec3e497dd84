"""Start a run from the weights of a checkpoint (`--init-from`), perhaps with a longer context or more control tokens."""

import hashlib
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint import select as checkpoint_select
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.config.schema import Config, ModelConfig, Tree, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.errors import DataError, UsageError
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import run_of
from llamactl.storage.home import home_folder
from llamactl.tokenizer.bpe import Tokenizer, read_tokenizer

# Settings that may differ from the checkpoint's: no weight has a shape that depends on them.
FREE = {"context", "rope_scaling"}
NOISE = 0.1  # of the rows of new ids, as a fraction of how far the known ones spread


def config_from_checkpoint(name: str, layers: list[Tree]) -> Config:
    """Build the config of a run that starts from a checkpoint: the preset of its run, its model, then `layers` of settings.

    A longer context scales RoPE positions down by the same factor unless `layers` set it. Raises DataError, UsageError.
    """
    path, shape = checkpoint_select.retry_while_pruned(
        name, lambda path: (path, read_hf_config(path, checkpoint_format.checkpoint_root(path)))
    )
    # Built twice, as only the finished config says how long the context is.
    base: list[dict[str, Any]] = [preset_settings(_preset(path)), {"model": shape.model_dump()}]
    longer = max(1.0, build_config([*base, *layers]).model.context / shape.context)
    scaling = {"model": {"rope_scaling": shape.rope_scaling * longer}}
    return build_config([*base, scaling, *layers, {"preset": _preset(path), "train": {"init_from": name, "init_sha256": ""}}])


def pin_init_from(config: Config, dataset: Dataset) -> Config:
    """Pin `train.init_from` to a permanent name and the sha256 of its weights, so that a restart finds the same ones.

    Raises DataError when it is damaged or the dataset has another tokenizer, UsageError when the shapes differ.
    """
    if not config.train.init_from:
        return config
    config = config.model_copy(update={"model": _with_rows(config.model, dataset)})

    def check(path: Path) -> dict[str, str]:
        state = checkpoint_format.read_verified_state(path)
        _check(config, dataset, path, state)
        return {"init_from": permanent_name(path, state.step), "init_sha256": state.weights_digest}

    # The other run may be training now, and prune the checkpoint while it is read.
    pinned = checkpoint_select.retry_while_pruned(config.train.init_from, check)
    return config.with_train(**pinned)


def load_init_weights(config: Config, dataset: Dataset, model: Llama) -> None:
    """Load the weights of `train.init_from` into a model, if it is set; raises DataError, UsageError."""
    if config.train.init_from:
        path = checkpoint_select.locate_checkpoint(config.train.init_from)
        _check(config, dataset, path, checkpoint_format.read_state(path))
        known = _tokenizer_of(path).vocab_size
        new = range(known, dataset.tokenizer.vocab_size)
        add_ids = partial(add_rows, new=new, rows=config.model.vocab_size, seed=config.train.seed) if new else None
        checkpoint_io.restore_weights(path, model, add_ids)


def add_rows(name: str, weights: Tensor, new: range, rows: int, seed: int) -> Tensor:
    """Return an embedding or a head, V D in fp32, with `rows` rows, of which those of `new` ids are ready to be trained.

    They are the mean of the known ones, which is likely nowhere, and a little noise that tells them apart; the name and the
    seed decide it. What is left of the rows that round a vocabulary up is used first.
    """
    weights = weights.float()
    known = weights[: new.start]
    grown = torch.cat([weights, known.mean(0).expand(rows - len(weights), -1)])
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    noise = torch.randn(len(new), weights.shape[1], generator=generator)
    grown[new.start : new.stop] = known.mean(0) + NOISE * known.std(0) * noise
    return grown


def _with_rows(model: ModelConfig, dataset: Dataset) -> ModelConfig:
    """Return a shape with rows for all ids of a dataset: as many as it has, else the next multiple of 128."""
    needed = dataset.info.vocab_size
    rows = model.vocab_size if model.vocab_size >= needed else -(-needed // 128) * 128
    return model.model_copy(update={"vocab_size": rows})


def _check(config: Config, dataset: Dataset, path: Path, state: checkpoint_format.State) -> None:
    """Raise DataError for another tokenizer or other weights than pinned, UsageError for another shape."""
    root = checkpoint_format.checkpoint_root(path)
    if not dataset.tokenizer.extends(_tokenizer_of(path)):
        message = f"The dataset {dataset.name} and the checkpoint {path} have different tokenizers."
        file = shlex.quote(str(path / "tokenizer.json"))
        fix = f"Prepare the text with the checkpoint's: llamactl prepare SOURCE --tokenizer {file}"
        raise DataError(message, "The same ids stand for other text.", fix)
    old, new = _with_rows(read_hf_config(path, root), dataset).model_dump(), config.model.model_dump()
    differ = ", ".join(f"model.{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key] and key not in FREE)
    if differ:
        why = f"Only {' and '.join(f'model.{key}' for key in sorted(FREE))} may differ: no weight depends on them."
        raise UsageError(
            f"A run from the checkpoint {path} can't change {differ}.", why, "Leave it as it was, or start afresh."
        )
    if config.train.init_sha256 not in ("", state.weights_digest):
        message = f"{path} no longer holds the weights that this run starts from."
        raise DataError(
            message,
            "Its run was trained again.",
            f"Start a new run: llamactl train --init-from {shlex.quote(config.train.init_from)}",
        )


def _tokenizer_of(path: Path) -> Tokenizer:
    return read_tokenizer(checkpoint_format.locate_file(path, "tokenizer.json"), checkpoint_format.checkpoint_root(path))


def _preset(path: Path) -> str:
    """Find the preset of a checkpoint's run; 150m for a checkpoint outside of any run, as its own shape replaces that one."""
    run = run_of(path)
    return run.config().preset if run and os.path.lexists(run.config_path) else "150m"


def permanent_name(path: Path, step: int) -> str:
    """Return RUN@STEP for a checkpoint below the home folder, which may be moved, else the absolute path."""
    absolute = path.resolve()
    run = run_of(absolute)
    in_home = run and run.path.parent == (home_folder() / "runs").resolve() and absolute == run.checkpoint(step)
    return f"{run.path.name}@{step}" if run and in_home else str(absolute)

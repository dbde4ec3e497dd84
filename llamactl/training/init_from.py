"""Start a run from the weights of a checkpoint (`--init-from`), perhaps with a longer context."""

import os
from pathlib import Path
from typing import Any

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint import select as checkpoint_select
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.config.schema import Config, Tree, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.errors import DataError, UsageError
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.storage.home import home_folder
from llamactl.tokenizer.bpe import read_tokenizer

# Settings that may differ from the checkpoint's: no weight has a shape that depends on them.
FREE = {"context", "rope_scaling"}


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

    def check(path: Path) -> dict[str, str]:
        state = checkpoint_format.read_verified_state(path)
        _check(config, dataset, path, state)
        return {"init_from": _permanent_name(path, state.step), "init_sha256": state.weights_digest}

    # The other run may be training now, and prune the checkpoint while it is read.
    pinned = checkpoint_select.retry_while_pruned(config.train.init_from, check)
    return config.with_train(**pinned)


def load_init_weights(config: Config, dataset: Dataset, model: Llama) -> None:
    """Load the weights of `train.init_from` into a model, if it is set; raises DataError, UsageError."""
    if config.train.init_from:
        path = checkpoint_select.locate_checkpoint(config.train.init_from)
        _check(config, dataset, path, checkpoint_format.read_state(path))
        checkpoint_io.restore_weights(path, model)


def _check(config: Config, dataset: Dataset, path: Path, state: checkpoint_format.State) -> None:
    """Raise DataError for another tokenizer or other weights than pinned, UsageError for another shape."""
    root = checkpoint_format.checkpoint_root(path)
    tokenizer = read_tokenizer(checkpoint_format.locate_file(path, "tokenizer.json"), root)
    if not tokenizer.is_same(dataset.tokenizer):
        message = f"The dataset {dataset.name} and the checkpoint {path} have different tokenizers."
        fix = f"Prepare the text with the checkpoint's: llamactl prepare SOURCE --tokenizer {path / 'tokenizer.json'}"
        raise DataError(message, "The same ids stand for other text.", fix)
    old, new = read_hf_config(path, root).model_dump(), config.model.model_dump()
    # 0 means: as the dataset needs. The tokenizers are the same, so the sizes are.
    new["vocab_size"] = new["vocab_size"] or old["vocab_size"]
    differ = ", ".join(f"model.{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key] and key not in FREE)
    if differ:
        why = f"Only {' and '.join(f'model.{key}' for key in sorted(FREE))} may differ: no weight depends on them."
        raise UsageError(
            f"A run from the checkpoint {path} can't change {differ}.", why, "Leave it as it was, or start afresh."
        )
    if config.train.init_sha256 not in ("", state.weights_digest):
        message = f"{path} no longer holds the weights that this run starts from."
        raise DataError(
            message, "Its run was trained again.", f"Start a new run: llamactl train --init-from {config.train.init_from}"
        )


def _preset(path: Path) -> str:
    """Find the preset of a checkpoint's run; 150m for a checkpoint outside of any run, as its own shape replaces that one."""
    run = RunDir(path.absolute().parent.parent)
    return (
        run.config().preset
        if path.absolute().parent == run.checkpoint(0).parent and os.path.lexists(run.config_path)
        else "150m"
    )


def _permanent_name(path: Path, step: int) -> str:
    """Return RUN@STEP for a checkpoint below the home folder, which may be moved, else the absolute path."""
    absolute = path.resolve()
    run = RunDir(absolute.parent.parent)
    in_home = run.path.parent == (home_folder() / "runs").resolve() and absolute == run.checkpoint(step)
    return f"{run.path.name}@{step}" if in_home else str(absolute)

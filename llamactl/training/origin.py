"""Where a run's first weights come from: drawn from its seed, or another run's checkpoint, perhaps for a longer context."""

from pathlib import Path
from typing import Any

from llamactl import checkpoint, hugging_face
from llamactl.artifacts import Dataset, RunDir, home, read
from llamactl.config import Config, Tree, build, preset
from llamactl.errors import BadData, BadUsage
from llamactl.model.llama import Llama

FREE = {"context", "rope_scaling"}  # what may differ from the checkpoint's shape: no weight depends on it


def continuation(name: str, layers: list[Tree]) -> Config:
    """The config of a run that starts from a checkpoint: its shape, the preset of its run, then `layers` of settings.

    A context that grows divides positions by as much, unless `layers` say otherwise. Raises BadData, BadUsage.
    """
    path = checkpoint.locate(name)
    shape = hugging_face.shape(path)
    start: list[dict[str, Any]] = [preset(_preset(path)), {"model": shape.model_dump()}]
    longer = max(1.0, build([*start, *layers]).model.context / shape.context)
    scaling = {"model": {"rope_scaling": shape.rope_scaling * longer}}
    return build([*start, scaling, *layers, {"preset": _preset(path), "train": {"init_from": name, "init_sha256": ""}}])


def anchored(config: Config, dataset: Dataset) -> Config:
    """The same with its checkpoint under a name that stays, and the hash of its weights, so that it can be found again.

    Raises BadData when it is damaged or the dataset has another tokenizer, BadUsage when the shapes differ.
    """
    if not config.train.init_from:
        return config
    path = checkpoint.locate(config.train.init_from)
    state = checkpoint.verified(path)
    _check(config, dataset, path, state)
    found = {"init_from": _lasting_name(path, state.step), "init_sha256": state.weights_digest}
    return config.model_copy(update={"train": config.train.model_copy(update=found)})


def inherit(config: Config, dataset: Dataset, model: Llama) -> None:
    """Put the weights a run starts from into place; without a checkpoint those that the seed drew stay. Raises as above."""
    if config.train.init_from:
        path = checkpoint.locate(config.train.init_from)
        _check(config, dataset, path, read(path / checkpoint.STATE, checkpoint.State))
        checkpoint.restore_weights(path, model)


def _check(config: Config, dataset: Dataset, path: Path, state: checkpoint.State) -> None:
    """Whether a run can start from a checkpoint: the same ids, the same shape, and the weights it knows, if it does."""
    if state.files.get("tokenizer.json") != dataset.info.tokenizer:
        what = f"The dataset {dataset.name} and the checkpoint {path} have different tokenizers."
        fix = f"Prepare the text with the checkpoint's: llamactl prepare SOURCE --tokenizer {path / 'tokenizer.json'}"
        raise BadData(what, "The same ids stand for other text.", fix)
    old, new = hugging_face.shape(path).model_dump(), config.model.model_dump()
    new["vocab_size"] = new["vocab_size"] or old["vocab_size"]
    differ = ", ".join(f"model.{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key] and key not in FREE)
    if differ:
        why = f"Only {' and '.join(f'model.{key}' for key in sorted(FREE))} may differ: no weight depends on them."
        raise BadUsage(f"A run from the checkpoint {path} can't change {differ}.", why, "Leave it as it was, or start afresh.")
    if config.train.init_sha256 not in ("", state.weights_digest):
        what = f"{path} no longer holds the weights that this run starts from."
        raise BadData(what, "Its run was made again.", f"Start a new run: llamactl train --init-from {config.train.init_from}")


def _preset(path: Path) -> str:
    """The preset of the run that a checkpoint belongs to, or the one without settings but for its shape."""
    run = RunDir(path.absolute().parent.parent)
    return run.config().preset if path.absolute().parent == run.checkpoint(0).parent and run.config_path.exists() else "150m"


def _lasting_name(path: Path, step: int) -> str:
    """RUN@STEP for a checkpoint of a run of ours, which may move with its home; the absolute path of any other."""
    absolute = path.resolve()
    run = RunDir(absolute.parent.parent)
    ours = run.path.parent == (home() / "runs").resolve() and absolute == run.checkpoint(step)
    return f"{run.path.name}@{step}" if ours else str(absolute)

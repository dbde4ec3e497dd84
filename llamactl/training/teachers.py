"""The checkpoints that a run learns from beside the text (`train.teachers`): pin them by their weights, and load them."""

from pathlib import Path

from llamactl.checkpoint.format import read_verified_state
from llamactl.checkpoint.io import load_model
from llamactl.checkpoint.select import locate_checkpoint, retry_while_pruned
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import DataError, UsageError
from llamactl.model.distillation import Teachers
from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.training.init_from import permanent_name


def pin_teachers(config: Config) -> Config:
    """Pin `train.teachers` to permanent names and the sha256 of their weights, so that a resumed run has the same ones.

    Raises DataError for one that is missing or damaged, or whose weights are not those that were pinned before.
    """
    known = config.train.teachers_sha256

    def pin(path: Path) -> tuple[str, str]:
        state = read_verified_state(path)
        return permanent_name(path, state.step), state.weights_digest

    # Another run may be training now, and prune the checkpoint while it is read.
    pinned = [retry_while_pruned(name, pin) for name in config.train.teachers]
    for number, (name, digest) in enumerate(pinned):
        if known and known[number : number + 1] != (digest,):
            message = f"The teacher {name} no longer holds the weights that this run learns from."
            raise DataError(message, "Its run was trained again.", "Start a new run: llamactl train --teachers RUNS")
    names, digests = (tuple(column) for column in zip(*pinned, strict=True)) if pinned else ((), ())
    return config.with_train(teachers=names, teachers_sha256=digests)


def load_teachers(config: Config, dataset: Dataset, world: World) -> Teachers | None:
    """Load the teachers of a resolved config; None for none. Raises DataError, and UsageError for one that does not fit."""
    if not config.train.teachers:
        return None
    models = []
    for name in config.train.teachers:
        model, tokenizer, _ = load_model(locate_checkpoint(name), world.device)
        _check(name, model, tokenizer, config, dataset)
        models.append(model.to(world.precision.dtype).requires_grad_(requires_grad=False))
    return Teachers(models, config.train.teacher_share)


def _check(name: str, model: Llama, tokenizer: Tokenizer, config: Config, dataset: Dataset) -> None:
    """Raise UsageError for a teacher whose predictions are not those of the same ids, or that reads less at a time."""
    if not dataset.tokenizer.extends(tokenizer) or model.config.vocab_size != config.model.vocab_size:
        why = "The same ids must stand for the same text."
        raise UsageError(
            f"The teacher {name} has another tokenizer than {dataset.name}.", why, "Take one that was trained on it."
        )
    if model.config.context < config.model.context:
        why = f"It reads {model.config.context:,} tokens at a time, and this run {config.model.context:,}."
        raise UsageError(f"The teacher {name} has a shorter context.", why, f"Add: --context {model.config.context}")

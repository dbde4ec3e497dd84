"""The checkpoints that a run learns from beside the text (`train.teachers`): pin them by their weights, and load them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from llamactl.checkpoint.format import checkpoint_root, locate_file, read_verified_state
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.checkpoint.io import load_model
from llamactl.checkpoint.select import locate_checkpoint, retry_while_pruned
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import DataError, UsageError
from llamactl.model.distillation import Teachers
from llamactl.tokenizer.bpe import read_tokenizer
from llamactl.training.init_from import permanent_name


def pin_teachers(config: Config, dataset: Dataset, resumed: bool = False) -> Config:
    """Pin `train.teachers` to permanent names and the sha256 of their weights; a resumed run must find the same ones.

    Raises DataError for one that is missing, damaged or not the same, UsageError for one that does not fit the run.
    """
    names, digests = [], []
    for name in config.train.teachers:
        if not name:
            raise UsageError("A teacher has no name.", "", "Separate the names by single commas: --teachers first,second")
        pinned, digest = _pin(name, config, dataset)
        if pinned in names:
            raise UsageError(f"{pinned} is named twice as a teacher.", "Its word would count twice.", "Name it once.")
        names.append(pinned)
        digests.append(digest)
    if resumed and tuple(digests) != config.train.teachers_sha256:
        why = "Runs that it learns from were trained again, or are others."
        raise DataError(
            "The teachers of this run no longer hold the same weights.", why, "Start a new run, with another --run."
        )
    return config.with_train(teachers=tuple(names), teachers_sha256=tuple(digests))


def pin_teachers_where_they_fit(configs: Sequence[Config], dataset: Dataset) -> list[Config]:
    """Pin the teachers of those configs that they fit, such as the sizes of their context; raises UsageError without any."""
    pinned: list[Config] = []
    refused: list[UsageError] = []
    for config in configs:
        try:
            pinned.append(pin_teachers(config, dataset))
        except UsageError as error:
            refused.append(error)
    if not pinned:
        raise refused[0]
    return pinned


def _pin(name: str, config: Config, dataset: Dataset) -> tuple[str, str]:
    """Return the permanent name of a teacher and the sha256 of its weights; raises DataError, UsageError."""

    def read_teacher(path: Path) -> tuple[str, str]:
        state = read_verified_state(path)
        _check_fit(name, path, config, dataset)
        return permanent_name(path, state.step), state.weights_digest

    try:
        # The other run may be training now, and prune the checkpoint while it is read.
        return retry_while_pruned(name, read_teacher)
    except DataError as error:
        why = f"A run reads its teachers until it is over. {error.why}".strip()
        raise DataError(f"The teacher {name} can't be read: {error.what}", why, error.fix) from error


def _check_fit(name: str, path: Path, config: Config, dataset: Dataset) -> None:
    """Raise UsageError for a teacher whose predictions are not those of the same ids, or that reads less at a time."""
    root = checkpoint_root(path)
    shape, tokenizer = read_hf_config(path, root), read_tokenizer(locate_file(path, "tokenizer.json"), root)
    if not dataset.tokenizer.extends(tokenizer) or tokenizer.vocab_size != dataset.tokenizer.vocab_size:
        what = f"The teacher {name} has another tokenizer than the dataset {dataset.name}."
        raise UsageError(what, "The same ids must stand for the same text.", f"Train one: llamactl train --data {dataset.name}")
    rows = config.model.vocab_size or -(-dataset.info.vocab_size // 128) * 128
    if shape.vocab_size != rows:
        what = f"The teacher {name} has {shape.vocab_size:,} rows in its head, and this run {rows:,}."
        raise UsageError(what, "They are rounded differently.", f"Add: --set model.vocab_size={shape.vocab_size}")
    if shape.context < config.model.context:
        why = f"It reads {shape.context:,} tokens at a time, and this run {config.model.context:,}."
        raise UsageError(f"The teacher {name} has a shorter context.", why, f"Add: --context {shape.context}")


def load_teachers(config: Config, world: World) -> Teachers | None:
    """Load the teachers of a config; None for none. Raises DataError, also for weights that are not the pinned ones."""
    train = config.train
    if not train.teachers:
        return None
    # fp16 has too small a range for a model as a whole: there autocast chooses, as it does for the one that is trained.
    dtype = torch.bfloat16 if world.precision.dtype == torch.bfloat16 else torch.float32
    models = []
    for name, digest in zip(train.teachers, train.teachers_sha256, strict=True):
        model, _, state = load_model(locate_checkpoint(name), world.device)
        if state.weights_digest != digest:
            why = "Its run was trained again, or this machine has another one."
            raise DataError(f"The teacher {name} does not hold the weights that this run learns from.", why, "Start a new run.")
        models.append(model.to(dtype).requires_grad_(requires_grad=False))
    return Teachers(models, train.teacher_share)

"""Fine-tune a model on conversations: what is read of the model, which rows are made for it, and the config of the run."""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.checkpoint.huggingface import read_chat_template, read_model_tokenizer
from llamactl.config.schema import Tree
from llamactl.corpus.chat_dataset import Mix
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.dataset_info import Recipe
from llamactl.corpus.rows import RowSource, describe_inputs
from llamactl.corpus.sources import default_val_fraction
from llamactl.errors import DataError, UsageError, UserError
from llamactl.runs.run_dir import RunDir, run_of
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.roles import add_roles
from llamactl.training.init_from import permanent_name

# Tokens of a row where nobody says: most conversations are shorter, and the work of attention grows with their square.
LONGEST_ROW = 4_096
# The share of rows that are text where nobody says; docs/chat.md has what it keeps.
USUAL_MIX = 0.5
NAME_TEXT = "Name a dataset of text: --mix-from DATASET"
HUB_VAL_FRACTION = 0.01  # of conversations of the hub, whose size is not known before


class BaseModel(NamedTuple):
    """The model that is fine-tuned: its folder, its permanent name, its tokenizer with the roles, and the tokens of a row.

    `other_template` tells that it had another chat template, which the one of the roles replaces.
    """

    path: Path
    name: str
    tokenizer: Tokenizer
    context: int
    other_template: bool


def read_base_model(path: Path, context: int | None) -> BaseModel:
    """Read what fine-tuning needs to know of a checkpoint or of another program's folder; raises DataError."""
    root, state = checkpoint_format.checkpoint_root(path), checkpoint_format.read_state(path)
    with_roles, before = add_roles(read_model_tokenizer(path)), read_chat_template(path)
    length = context or min(LONGEST_ROW, read_hf_config(path, root).context)
    return BaseModel(path, permanent_name(path, state.step), with_roles, length, before not in ("", with_roles.chat_template))


def find_text(base: BaseModel, share: float | None, name: str) -> Mix | None:
    """Find the text to mix in: the dataset with a name, else the one that the model was trained on; None for a share of 0.

    Without a share it is `USUAL_MIX` where there is such a text. Raises UsageError where none is known for a share that was
    typed, DataError for a dataset of conversations or of another tokenizer.
    """
    if share == 0:
        return None
    if name or share:
        return Mix(_open_text(base, name or _trained_on(base)), share or USUAL_MIX)
    with suppress(UserError):
        return Mix(_open_text(base, _trained_on(base)), USUAL_MIX)
    return None


def _trained_on(base: BaseModel) -> str:
    """Return the name of the dataset that the run of a model was trained on; raises UsageError for a model of no run."""
    run = run_of(base.path)
    while True:
        if run is None or not os.path.lexists(run.config_path):
            raise UsageError("--mix does not know which text to take.", "The model is not of a run here.", NAME_TEXT)
        config = run.config()
        if not DatasetDir.from_name(config.data.name).holds_conversations() or not config.train.init_from:
            return config.data.name
        # A run that was fine-tuned: what that began with, which may be a folder that is not of a run.
        base_name = config.train.init_from.partition("@")[0]
        run = None if os.sep in base_name else RunDir.from_name(base_name)


def _open_text(base: BaseModel, name: str) -> Dataset:
    text = DatasetDir.from_name(name).open()
    if text.info.recipe.row_tokens:
        raise DataError(f"The dataset {text.name} holds conversations, not text.", "", NAME_TEXT)
    if not base.tokenizer.extends(text.tokenizer):
        what = f"The dataset {text.name} has another tokenizer than the model."
        file = shlex.quote(str(base.path / "tokenizer.json"))
        fix = f"Prepare its text with the model's: llamactl prepare SOURCE --tokenizer {file}"
        raise DataError(what, "The same ids stand for other text.", fix)
    return text


def row_recipe(words: str, source: RowSource, base: BaseModel, mix: Mix | None, val_fraction: float) -> Recipe:
    """Return the recipe of the rows; raises DataError for a file that can't be read."""
    usual = default_val_fraction(source.size) if source.size else HUB_VAL_FRACTION
    return Recipe(
        source=words,
        inputs=describe_inputs(source),
        tokenizer=f"sha256:{base.tokenizer.digest[:16]}",
        val_fraction=val_fraction or usual,
        row_tokens=base.context,
        mixed_with=f"{mix.text.info.digest} {mix.share}" if mix else "",
    )


def finetuning_settings(base: BaseModel, rows: Dataset, epochs: float) -> list[Tree]:
    """Return the settings that make a run one of fine-tuning; without `epochs` they set no budget."""
    tokens = round(epochs * rows.info.total("train", "tokens"))
    return [
        {"model": {"context": base.context}},
        {"data": {"name": rows.name, "loss_on": "assistant", "separate_documents": True}},
        {"optim": {"name": "adamw"}},  # it moves what the conversations do not need less than Muon does: docs/chat.md
        {"train": {"tokens": max(1, tokens)} if epochs else {}},
    ]


def check_same_run(folder: RunDir, base: BaseModel, rows: Dataset) -> None:
    """Check that a run which exists is that of the same model and rows, so that it can be resumed; raises UsageError."""
    before = folder.config()
    differs = [
        f"{name}: {was or 'none'}, now {now}"
        for name, was, now in (
            ("model", before.train.init_from, base.name),
            ("dataset", before.data.name, rows.name),
            ("loss_on", before.data.loss_on, "assistant"),
        )
        if was != now
    ]
    if differs:
        fix = f"Choose another --run, or resume it: llamactl train --resume {folder.path.name}"
        raise UsageError(f"The run {folder.path.name} already exists.", f"It is another one ({'; '.join(differs)}).", fix)

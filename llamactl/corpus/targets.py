"""Which targets of a window count, and where documents begin in it: functions of the tokens alone.

So shards hold nothing but tokens, and batches, their order and resuming are the same whatever the loss counts.
"""

from dataclasses import dataclass

import numpy as np

from llamactl.config.schema import DataConfig
from llamactl.corpus.dataset import Dataset
from llamactl.errors import UsageError
from llamactl.tokenizer.chat import ROLE_TOKENS

REPLY = "<|assistant|>"
IGNORED = -100  # a target that does not count, as the loss in `model/objective.py` knows it


@dataclass(frozen=True)
class WindowRule:
    """The rule by which windows of tokens become inputs, targets and documents."""

    rows: bool = False  # each window is a row of its own: the token after its last one is of another row
    separate: bool = False
    reply: int | None = None  # the token that begins a reply, where only replies count
    roles: frozenset[int] = frozenset()  # the tokens that begin and end turns
    begin: int | None = None  # the token that begins a document; None: documents only have an end
    end: int = 0

    @property
    def ignores(self) -> bool:
        """Check whether some targets do not count."""
        return self.rows or self.reply is not None

    def targets(self, tokens: np.ndarray) -> np.ndarray:
        """Return the target of each position, B T, of windows of tokens (B T+1); `IGNORED` where none counts."""
        targets = tokens[:, 1:].copy()
        if self.reply is not None:
            targets[~self._is_learned(tokens[:, :-1])] = IGNORED
        if self.rows:
            targets[:, -1] = IGNORED
        return targets

    def _is_learned(self, inputs: np.ndarray) -> np.ndarray:
        """Find the inputs (B T) within a reply, from its role on; all of a window without conversations, which is text."""
        is_role = np.isin(inputs, list(self.roles))
        places = np.maximum.accumulate(np.where(is_role, np.arange(inputs.shape[1]), 0), axis=1)
        # The role that was named last, at or before each position; before the first one any other token.
        last = np.take_along_axis(inputs, places, axis=1)
        return np.asarray((last == self.reply) | ~is_role.any(axis=1, keepdims=True))

    def documents(self, inputs: np.ndarray) -> np.ndarray | None:
        """Return where documents begin in windows of inputs (B T) laid one after another, and their end: N+1, int32.

        Each window begins one. None where documents are not separated.
        """
        if not self.separate:
            return None
        begins = np.ones(inputs.shape, dtype=bool)
        begins[:, 1:] = inputs[:, :-1] == self.end if self.begin is None else inputs[:, 1:] == self.begin
        return np.append(np.flatnonzero(begins), inputs.size).astype(np.int32)


EVERY_TARGET = WindowRule()


def window_rule(dataset: Dataset, data: DataConfig, context: int) -> WindowRule:
    """Build the rule for a dataset, in windows of `context` tokens, from the settings of a run.

    Raises UsageError for a loss on replies that the dataset lacks, and for windows that are not its rows.
    """
    width = dataset.info.recipe.row_tokens
    if width not in (0, context):
        what = f"The dataset {dataset.name} has rows of {width:,} tokens; the model's context is {context:,}."
        raise UsageError(what, "Each window is a row.", f"Train with --context {width}, or make rows for this model.")
    tokenizer, ids = dataset.tokenizer, dict[str, int]()
    if data.loss_on == "assistant":
        ids = {name: tokenizer.controls[name] for name in ROLE_TOKENS if name in tokenizer.controls}
        if len(ids) < len(ROLE_TOKENS):
            why = f"Its tokenizer lacks {', '.join(name for name in ROLE_TOKENS if name not in ids)}."
            fix = "Make one of conversations: llamactl finetune CONVERSATIONS --from MODEL"
            raise UsageError(f"data.loss_on=assistant: the dataset {dataset.name} has no replies.", why, fix)
    begin = tokenizer.start[0] if tokenizer.start else None
    return WindowRule(
        width > 0,
        data.separate_documents,
        ids.get(REPLY),
        frozenset(ids.values()),
        begin,
        tokenizer.end,
    )


def settings_for(dataset: Dataset, data: DataConfig) -> DataConfig:
    """Return the settings by which a dataset is measured: a run's own where they fit, for conversations those of replies."""
    if dataset.info.recipe.row_tokens:
        return DataConfig(loss_on="assistant", separate_documents=True)
    return DataConfig() if data.loss_on == "assistant" else data

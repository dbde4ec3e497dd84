"""Known results to compare a run's loss with: the student's notebook, and GPT-2.

Nats per token of two tokenizers do not compare: a token that encodes more bytes is harder to predict. Each loss here is
converted to a run's own tokenizer by bytes per token, which is exact if the text is the same; bits per byte do not change.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo
from llamactl.errors import UsageError, UserError, suggest_nearest
from llamactl.runs.run_dir import RunDir

TEXT = "openwebtext"  # the text both were measured on, by its name in `llamactl prepare`

# The notebook's training loss every 200 batches of 50 windows of 255 tokens, read off its plot to about 0.02 nats per token
# of Mistral's BPE; docs/notebook.md describes its run.
NOTEBOOK = (
    6.70, 5.79, 5.27, 5.03, 4.85, 4.75, 4.67, 4.62, 4.50, 4.48, 4.40, 4.36, 4.34, 4.34,
    4.29, 4.24, 4.22, 4.18, 4.19, 4.16, 4.15, 4.11, 4.07, 4.07, 4.06, 4.00, 4.01, 4.00,
    4.00, 3.98, 3.98, 4.00, 3.96, 3.95, 3.97, 3.93, 3.93, 3.93, 3.90, 3.91, 3.91, 3.90,
    3.89, 3.88, 3.92, 3.86, 3.92, 3.90, 3.95, 3.86, 3.91, 3.91, 3.93, 3.93, 3.95, 4.00,
    3.95, 4.06, 3.95, 3.95, 4.02, 4.00, 4.04, 4.03, 4.06, 4.04, 4.03, 4.10, 4.14, 4.15,
)  # fmt: skip
NOTEBOOK_EVERY = 200  # steps
NOTEBOOK_STEP = 50 * 255  # tokens
NOTEBOOK_SPEED = 15_300  # tokens per second, on an RTX A4000
NOTEBOOK_PARAMETERS = 153_665_605
MISTRAL_BYTES = 4.05  # bytes per token on OpenWebText

# GPT-2 124M as OpenAI trained it, on OpenWebText's validation split: nanoGPT's README, "baselines". Further trained on
# OpenWebText for a while, it reaches 2.85.
GPT2 = 3.12  # nats per token
GPT2_BYTES = 4.41  # bytes per token on OpenWebText


@dataclass(frozen=True)
class Baseline:
    """A known loss in nats per token: a curve or a level.

    A curve has rows with the fields of a run's log; without rows it is a level, the same loss everywhere.
    """

    label: str
    level: float
    rows: tuple[dict[str, float], ...] = ()

    def rows_until(self, field: str, end: float) -> tuple[list[float], list[float]]:
        """Return the curve's points up to `end`, where a run ends: the values of `field`, and the losses."""
        rows = [row for row in self.rows if row[field] <= end]
        return [row[field] for row in rows], [row["loss"] for row in rows]


def notebook_curve(info: DatasetInfo) -> Baseline:
    """Return the loss curve of the student's run that llamactl re-implements, at a dataset's bytes per token.

    Its times assume its 15,300 tokens per second; its FLOPs are 6 N per token, where N = 153.7M is all of its parameters.
    """
    ours = bytes_per_token(info)
    steps = range(NOTEBOOK_EVERY, NOTEBOOK_EVERY * len(NOTEBOOK) + 1, NOTEBOOK_EVERY)
    rows = tuple(
        {
            "step": step,
            "tokens": step * NOTEBOOK_STEP,
            "seconds": step * NOTEBOOK_STEP / NOTEBOOK_SPEED,
            "flops": 6.0 * NOTEBOOK_PARAMETERS * step * NOTEBOOK_STEP,
            "loss": loss * ours / MISTRAL_BYTES,
        }
        for step, loss in zip(steps, NOTEBOOK, strict=True)
    )
    return Baseline(f"notebook, at this tokenizer's {ours:.2f} bytes per token", rows[-1]["loss"], rows)


def gpt2_level(info: DatasetInfo) -> Baseline:
    """Return the loss of GPT-2 124M without any training on OpenWebText.

    It is converted to a dataset's bytes per token, unless the dataset's tokenizer is GPT-2's.
    """
    if info.recipe.tokenizer == "gpt2":
        return Baseline(f"GPT-2 124M: {GPT2:.2f}", GPT2)
    ours = bytes_per_token(info)
    level = GPT2 * ours / GPT2_BYTES
    return Baseline(f"GPT-2 124M: {level:.2f} at this tokenizer's {ours:.2f} bytes per token", level)


REFERENCES: dict[str, Callable[[DatasetInfo], Baseline]] = {"notebook": notebook_curve, "gpt2": gpt2_level}


def bytes_per_token(info: DatasetInfo) -> float:
    """Return the mean number of text bytes per token in a dataset's training split."""
    return info.total("train", "text_bytes") / max(1, info.total("train", "tokens"))


def choose_baselines(names: Sequence[str], run: RunDir) -> list[Baseline]:
    """Return the baselines with these names, at a run's bytes per token.

    Without names, these are all baselines for a run on OpenWebText and none for other runs; the name "none" always adds none.
    Raises UsageError for an unknown name, DataError when a baseline needs a dataset that is missing.
    """
    for name in names:
        if name not in (*REFERENCES, "none"):
            raise UsageError(f"There is no reference {name!r}.", suggest_nearest(name, [*REFERENCES, "none"]))
    if not names:
        names = tuple(REFERENCES) if reads_their_text(run) else ()
    return [REFERENCES[name](_info(run)) for name in dict.fromkeys(names) if name != "none"]


def reads_their_text(run: RunDir) -> bool:
    """Check whether a run trains on OpenWebText; returns False when its dataset is missing."""
    with suppress(UserError):
        return _info(run).recipe.source == TEXT
    return False


def _info(run: RunDir) -> DatasetInfo:
    return DatasetDir.from_name(run.config().data.name).info()

"""What is known to hold a run's loss against: the student's notebook, and GPT-2.

Nats per token of two tokenizers do not compare: a token that spells more bytes is harder to guess. Every loss here is carried
over to a run's own tokenizer by bytes per token, which is exact as far as the text is the same; bits per byte stay as they are.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from llamactl.artifacts import DatasetDir, DatasetInfo, RunDir
from llamactl.errors import BadUsage, UserError, nearest

TEXT = "openwebtext"  # what both were measured on, as `llamactl prepare` calls it

# The notebook's training loss every 200 batches of 50 windows of 255 tokens, measured off its picture to about 0.02 nats per
# token of Mistral's BPE; docs/notebook.md says what its run was.
NOTEBOOK = (
    6.70, 5.79, 5.27, 5.03, 4.85, 4.75, 4.67, 4.62, 4.50, 4.48, 4.40, 4.36, 4.34, 4.34,
    4.29, 4.24, 4.22, 4.18, 4.19, 4.16, 4.15, 4.11, 4.07, 4.07, 4.06, 4.00, 4.01, 4.00,
    4.00, 3.98, 3.98, 4.00, 3.96, 3.95, 3.97, 3.93, 3.93, 3.93, 3.90, 3.91, 3.91, 3.90,
    3.89, 3.88, 3.92, 3.86, 3.92, 3.90, 3.95, 3.86, 3.91, 3.91, 3.93, 3.93, 3.95, 4.00,
    3.95, 4.06, 3.95, 3.95, 4.02, 4.00, 4.04, 4.03, 4.06, 4.04, 4.03, 4.10, 4.14, 4.15,
)  # fmt: skip
NOTEBOOK_EVERY = 200  # steps
NOTEBOOK_STEP = 50 * 255  # tokens
NOTEBOOK_SPEED = 15_300  # tokens a second, on an RTX A4000
NOTEBOOK_PARAMETERS = 153_665_605
MISTRAL_BYTES = 4.05  # bytes per token on OpenWebText

# GPT-2 124M as OpenAI trained it, on OpenWebText's validation split: nanoGPT's README, "baselines". Trained on for a while on
# OpenWebText, it reaches 2.85.
GPT2 = 3.12  # nats per token
GPT2_BYTES = 4.41  # bytes per token on OpenWebText


@dataclass(frozen=True)
class Reference:
    """A curve, as rows with the fields of a run's log; or, without rows, a level: the same loss everywhere. In nats a token."""

    label: str
    level: float
    rows: tuple[dict[str, float], ...] = ()

    def until(self, field: str, end: float) -> tuple[list[float], list[float]]:
        """The curve's points up to where a run ends: a field of its rows, and losses."""
        rows = [row for row in self.rows if row[field] <= end]
        return [row[field] for row in rows], [row["loss"] for row in rows]


def notebook(info: DatasetInfo) -> Reference:
    """The student's run that llamactl re-implements, at a dataset's bytes per token.

    Its time is at its 15,300 tokens a second; its FLOPs are 6 N a token, with N = 153.7M, all of its parameters.
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
    return Reference(f"notebook, at this tokenizer's {ours:.2f} bytes per token", rows[-1]["loss"], rows)


def gpt2(info: DatasetInfo) -> Reference:
    """GPT-2 124M without any training on OpenWebText; at a dataset's bytes per token, unless its tokenizer is GPT-2's."""
    if info.recipe.tokenizer == "gpt2":
        return Reference(f"GPT-2 124M: {GPT2:.2f}", GPT2)
    ours = bytes_per_token(info)
    level = GPT2 * ours / GPT2_BYTES
    return Reference(f"GPT-2 124M: {level:.2f} at this tokenizer's {ours:.2f} bytes per token", level)


REFERENCES: dict[str, Callable[[DatasetInfo], Reference]] = {"notebook": notebook, "gpt2": gpt2}


def bytes_per_token(info: DatasetInfo) -> float:
    """How much text a token of a dataset's training split spells."""
    return info.total("train", "text_bytes") / max(1, info.total("train", "tokens"))


def choose(names: Sequence[str], run: RunDir) -> list[Reference]:
    """The references of these names, at a run's bytes per token; raises BadUsage for another name, BadData without a dataset.

    Nobody's choice, no name, is all of them for a run on OpenWebText, and none for another; so is the name none for every run.
    """
    for name in names:
        if name not in (*REFERENCES, "none"):
            raise BadUsage(f"There is no reference {name!r}.", nearest(name, [*REFERENCES, "none"]))
    if not names:
        names = tuple(REFERENCES) if reads_their_text(run) else ()
    return [REFERENCES[name](_info(run)) for name in dict.fromkeys(names) if name != "none"]


def reads_their_text(run: RunDir) -> bool:
    """Whether a run learns from OpenWebText; one whose dataset is gone may not."""
    with suppress(UserError):
        return _info(run).recipe.source == TEXT
    return False


def _info(run: RunDir) -> DatasetInfo:
    return DatasetDir.named(run.config().data.name).info()

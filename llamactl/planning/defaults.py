"""Choose the preset and the token budget that a dataset suggests."""

from llamactl.config.presets import PRESETS
from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset_info import DatasetInfo
from llamactl.planning.flops import num_matmul_params

# Up to 4 epochs, repeated text is worth almost as much as new text (Muennighoff et al. 2023, arXiv 2305.16264).
WORTHWHILE_EPOCHS = 4
# The ratio at which more tokens and more parameters gain equally (Hoffmann et al. 2022, arXiv 2203.15556).
TOKENS_PER_PARAMETER = 20
LARGEST_BUDGET = 3_000_000_000  # 20 tokens per parameter of the largest preset below
CHOSEN = ("150m", "50m", "10m", "tiny")  # larger presets take several GPUs, so they are never a default


def feedable_presets(info: DatasetInfo) -> tuple[str, ...]:
    """Return the presets for which a dataset has 20 tokens per parameter within 4 epochs, the largest first.

    The smallest one is always among them.
    """
    tokens = WORTHWHILE_EPOCHS * info.total("train", "tokens")
    sizes = {
        name: num_matmul_params(ModelConfig.model_validate(PRESETS[name]["model"] | {"vocab_size": info.vocab_size}))
        for name in CHOSEN
    }
    fed = tuple(name for name in CHOSEN if tokens >= TOKENS_PER_PARAMETER * sizes[name])
    return fed or CHOSEN[-1:]


def worthwhile_tokens(parameters: int, data: float) -> int:
    """Return the budget in tokens above which a model of that size, or `data` tokens of text, gains little."""
    # At least 1: a dataset without training text is refused later, with its reason.
    return max(1, int(min(TOKENS_PER_PARAMETER * parameters, WORTHWHILE_EPOCHS * data)))


def default_budget(info: DatasetInfo) -> int:
    """Return the default budget in tokens: 4 epochs of a dataset, at most 3 billion."""
    return max(1, min(LARGEST_BUDGET, WORTHWHILE_EPOCHS * info.total("train", "tokens")))

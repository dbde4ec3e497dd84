"""Choose the preset, the token budget and the validation that a dataset suggests."""

from llamactl.config.presets import PRESETS
from llamactl.config.schema import Config, ModelConfig, TrainConfig
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.dataset_info import DatasetInfo
from llamactl.errors import DataError
from llamactl.planning.flops import num_matmul_params

# Up to 4 epochs, repeated text is worth almost as much as new text (Muennighoff et al. 2023, arXiv 2305.16264).
WORTHWHILE_EPOCHS = 4
# With dropout and a strong weight decay, which keep text from being learned by heart (docs/recipe.md: more were not measured).
REGULARIZED_EPOCHS, DROPOUT, WEIGHT_DECAY = 16, 0.2, 2.0
# A text that is read more often than this may be learned by heart, after which held-out text gets worse, by a third for 128k
# tokens (docs/recipe.md): then so many validations without a lower loss end a run.
LEARNED_BY_HEART, PATIENCE = 2, 3
# Runs that another one learns from: three were measured (docs/recipe.md).
MOST_TEACHERS = 4
# The ratio at which more tokens and more parameters gain equally (Hoffmann et al. 2022, arXiv 2203.15556).
TOKENS_PER_PARAMETER = 20
LARGEST_BUDGET = 3_000_000_000  # 20 tokens per parameter of the largest preset below
LEAST_VALIDATED = 4_096  # tokens: the loss of fewer is too noisy
# A validation of the whole split is 1 % of the work where the split is this share of the budget: a forward pass is a third.
WHOLE_SPLIT, PART_OF_SPLIT = 1 / 30, 1 / 50
# 9,766 windows of 1,024 tokens: where windows differ by 1 nat, as in the sample, the standard error is 0.01.
MOST_VALIDATED = 10_000_000
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


def worthwhile_epochs(train: TrainConfig) -> int:
    """Return how often a text is worth reading with these settings."""
    return REGULARIZED_EPOCHS if train.dropout else WORTHWHILE_EPOCHS


def worthwhile_tokens(parameters: int, data: float, epochs: int) -> int:
    """Return the budget in tokens above which a model of that size, or `data` tokens read in `epochs`, gains little."""
    # At least 1: a dataset without training text is refused later, with its reason.
    return max(1, int(min(TOKENS_PER_PARAMETER * parameters, epochs * data)))


def default_budget(parameters: int, info: DatasetInfo, epochs: int = WORTHWHILE_EPOCHS) -> int:
    """Return the default budget in tokens: what the size and the dataset, read in `epochs`, are worth, at most 3 billion."""
    return min(LARGEST_BUDGET, worthwhile_tokens(parameters, info.total("train", "tokens"), epochs))


def count_windows(config: Config, dataset: Dataset) -> int:
    """Return the windows of a dataset's training split; raises DataError if it has none."""
    if windows := len(Windows(dataset.train, config.model.context)):
        return windows
    why = f"It has {dataset.info.total('train', 'tokens'):,} tokens; a window needs {config.model.context + 1:,}."
    raise DataError(f"The dataset {dataset.name} is too small.", why, "Prepare more text, or try: --set model.context=256")


def default_patience(train: TrainConfig, tokens: int, info: DatasetInfo) -> int:
    """Return the patience of a run whose budget of `tokens` was not asked for, unless its patience was."""
    is_read_often = tokens > LEARNED_BY_HEART * info.total("train", "tokens")
    return train.patience if train.patience >= 0 else PATIENCE if is_read_often else 0


def affordable_teachers(config: Config, epochs: float, taken: float, whole: float, left: float, trained: int) -> int:
    """Return how many runs alike a further one can learn from in the seconds that are `left`; 0 where it can't from two.

    A run takes as long as the first has `taken`, the last one a `whole` budget, and so many are `trained` already. 0 also where
    the first has not read the text as often as pays, so that a longer one is the better use of time.
    """
    if not config.train.dropout or epochs < 0.98 * REGULARIZED_EPOCHS:
        return 0
    # The last run reads what each of its teachers predicts, a third of its own work.
    costs = {count: (count - trained) * taken + (1 + count / 3) * whole for count in range(max(2, trained), MOST_TEACHERS + 1)}
    return max((count for count, cost in costs.items() if cost <= left), default=0)


def default_eval_tokens(tokens: int, info: DatasetInfo) -> int:
    """Return what each validation of a run of `tokens` measures: the whole split where that is cheap, else a part of it."""
    split = info.total("val", "tokens")
    wanted = split if 0 < split <= WHOLE_SPLIT * tokens else max(LEAST_VALIDATED, int(PART_OF_SPLIT * tokens))
    return min(wanted, MOST_VALIDATED)


def final_eval_tokens(train: TrainConfig, info: DatasetInfo) -> int:
    """Return the tokens that the last checkpoint is evaluated on: the whole split, or 0 where that is too much work."""
    split = info.total("val", "tokens")
    return split if split <= max(train.tokens, train.eval_tokens) else 0

"""Choose what a time buys on a device: of some configs, the one with the lowest expected loss, and its budget of tokens."""

from collections.abc import Iterable, Iterator
from itertools import chain

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, ModelConfig, build_config, preset_settings
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import UsageError
from llamactl.planning.defaults import (
    CHOSEN,
    DROPOUT,
    LARGEST_BUDGET,
    REGULARIZED_EPOCHS,
    TOKENS_PER_PARAMETER,
    WEIGHT_DECAY,
    WORTHWHILE_EPOCHS,
    count_windows,
    default_patience,
    final_eval_tokens,
    worthwhile_epochs,
)  # fmt: skip
from llamactl.planning.flops import flops_per_token
from llamactl.planning.loss import predict_loss
from llamactl.planning.resolve import resolve_config
from llamactl.planning.step_time import estimate_duration, estimate_step_time, expected_efficiency
from llamactl.units import show_time

SMALL_VOCABULARY, USUAL_BYTES_PER_TOKEN = 4_096, 4.0  # ids, and what such a BPE takes of English
SHORTEST_STEP = 1_024  # tokens, of which a CPU's products still reach their speed
HALVINGS = 24  # of the interval of budgets, up to 3 billion tokens: to within 200 tokens


def choose_in_time(configs: Iterable[Config], dataset: Dataset, world: World, rate: float, seconds: float) -> Config:
    """Return the config that is expected to learn most in `seconds` on devices of `rate` FLOP/s, with its budget set.

    Raises UsageError when the time is too short for any of them, DataError when the text is.
    """
    data, configs = dataset.info.total("train", "tokens"), tuple(configs)
    usable = [config for config in configs if len(Windows(dataset.train, config.model.context))]
    if not usable:
        count_windows(configs[0], dataset)  # raises the error
    found: list[tuple[float, Config]] = []
    for config in chain.from_iterable(map(_with_and_without_compiler, usable)):
        for variant, epochs in _plain_and_regularized(config, resolve_config(config, dataset, world).model, data):
            tokens = tokens_in_time(variant, dataset, world, rate, seconds, epochs)
            # Less is done better without dropout, which slows learning down.
            if tokens and (variant is config or tokens > WORTHWHILE_EPOCHS * data):
                loss = predict_loss(resolve_config(variant, dataset, world).model, tokens, tokens / data, dataset).loss
                patience = default_patience(variant.train, tokens, dataset.info)
                found.append((loss, variant.with_train(tokens=tokens, patience=patience)))
    if not found:
        why = "Not even one step of the smallest model ends in that time on this device."
        raise UsageError(f"{show_time(seconds)} is too short.", why, "Example: --time 5m")
    return _shorten_steps(min(found, key=lambda each: each[0])[1], dataset, world, rate, seconds)


def _shorten_steps(config: Config, dataset: Dataset, world: World, rate: float, seconds: float) -> Config:
    """Halve the tokens of a step as long as the run still ends in `seconds`, unless they were chosen.

    Time is left where the text and not the time limits the budget. A book that is read 16 times ends 4 % lower in steps of
    1,024 tokens than of 3,072 (docs/benchmarks.md).
    """
    epoch = len(Windows(dataset.train, config.model.context)) * config.model.context
    # A GPU needs larger steps than these to be busy.
    if config.train.tokens_per_step or world.device.type != "cpu" or config.train.tokens < WORTHWHILE_EPOCHS * epoch:
        return config
    chosen, size = config, resolve_config(config, dataset, world).train.tokens_per_step // 2
    while size >= max(SHORTEST_STEP, config.model.context):
        shorter = config.with_train(tokens_per_step=size - size % config.model.context)
        if run_seconds(shorter, dataset, world, rate) > seconds:
            break
        chosen, size = shorter, size // 2
    return chosen


def _with_and_without_compiler(config: Config) -> tuple[Config, ...]:
    """Return a config, and the same one eager where compiling is left open: half a minute of it may be too much."""
    return (config, config.with_train(compile="off")) if config.train.compile == "auto" else (config,)


def _plain_and_regularized(config: Config, model: ModelConfig, data: int) -> Iterator[tuple[Config, int]]:
    """Yield a config and, where text is scarce for its size, the same one with dropout, with the epochs that each is worth."""
    yield config, worthwhile_epochs(config.train)
    scarce = data < TOKENS_PER_PARAMETER * num_params(model)
    if scarce and not config.train.dropout and not config.train.init_from:
        optim = config.optim.model_copy(update={"weight_decay": max(WEIGHT_DECAY, config.optim.weight_decay)})
        yield config.with_train(dropout=DROPOUT).model_copy(update={"optim": optim}), REGULARIZED_EPOCHS


def bytes_in_time(world: World, rate: float, seconds: float) -> int:
    """Estimate the bytes of text that the smallest preset reads in a time, on devices of `rate` FLOP/s."""
    shape = {"model": {"vocab_size": SMALL_VOCABULARY}, "train": {"compile": "on"}}
    config = build_config([preset_settings(CHOSEN[-1]), shape])
    tokens = seconds * rate * world.size * expected_efficiency(config, world) / flops_per_token(config.model)
    return int(USUAL_BYTES_PER_TOKEN * tokens)


def tokens_in_time(
    config: Config, dataset: Dataset, world: World, rate: float, seconds: float, epochs: int = WORTHWHILE_EPOCHS
) -> int:
    """Return the largest budget of a config, up to some epochs, whose run is expected to end in `seconds`; 0 for none."""
    epoch = len(Windows(dataset.train, config.model.context)) * config.model.context
    low, high = 0, max(1, min(LARGEST_BUDGET, epochs * epoch))
    if run_seconds(config.with_train(tokens=high), dataset, world, rate) <= seconds:
        return high
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        if middle and run_seconds(config.with_train(tokens=middle), dataset, world, rate) <= seconds:
            low = middle
        else:
            high = middle
    return low


def run_seconds(config: Config, dataset: Dataset, world: World, rate: float) -> float:
    """Estimate the seconds of a run of a config that is not resolved, compiling and validation included."""
    resolved = resolve_config(config, dataset, world)
    steps = -(-resolved.train.tokens // resolved.train.tokens_per_step)
    evaluated = final_eval_tokens(resolved.train, dataset.info)
    return estimate_duration(resolved, world, steps, estimate_step_time(resolved, world, rate), evaluated).total

"""What a time buys: a budget whose run ends in it, of the size that is expected to learn most."""

import pytest

from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.sources import default_tokenizer
from llamactl.distributed.context import World, init_device
from llamactl.errors import DataError, UsageError
from llamactl.planning.defaults import PATIENCE
from llamactl.planning.resolve import resolve_config
from llamactl.planning.timed import bytes_in_time, choose_in_time, run_seconds, tokens_in_time
from tests.planning.test_agreement import dataset_of

RATE = 2e9  # FLOP/s: so slow that a small corpus lasts


def config_of(preset: str) -> tuple[Config, World]:
    config = build_config(
        [preset_settings(preset), {"model": {"context": 32}, "train": {"device": "cpu", "precision": "fp32"}}]
    )
    return config, init_device(config.train)


def with_tokens(config: Config, tokens: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"tokens": tokens})})


@pytest.mark.parametrize("seconds", [60, 200, 600])
def test_the_budget_fills_the_time(dataset: Dataset, seconds: int) -> None:
    config, world = config_of("tiny")
    tokens = tokens_in_time(config, dataset, world, RATE, seconds)
    took = run_seconds(with_tokens(config, tokens), dataset, world, RATE)
    assert 0.5 * seconds <= took <= seconds  # a step more would not fit: from 100 on there are ten validations, not three


def test_more_time_buys_more_up_to_what_the_data_is_worth(dataset: Dataset) -> None:
    config, world = config_of("tiny")
    budgets = [tokens_in_time(config, dataset, world, RATE, seconds) for seconds in (30, 100, 1_000, 10**6, 10**7)]
    assert budgets == sorted(budgets)
    assert budgets[-1] == budgets[-2] == 4 * 32 * len(Windows(dataset.train, 32))


def test_a_larger_model_is_taken_when_there_is_time_for_it(dataset: Dataset) -> None:
    configs = [config_of("10m")[0], config_of("tiny")[0]]
    world, text = config_of("tiny")[1], dataset_of(10**9, dataset)
    assert choose_in_time(configs, text, world, RATE, 200).preset == "tiny"
    assert choose_in_time(configs, text, world, RATE, 10**8).preset == "10m"


def test_scarce_text_is_read_more_often_with_dropout(dataset: Dataset) -> None:
    config, world = config_of("tiny")
    words = dataset.info.total("train", "tokens")
    short, long = (choose_in_time([config], dataset, world, RATE, seconds) for seconds in (60, 10**6))
    assert (short.train.dropout, short.optim.weight_decay) == (0.0, 0.1)
    assert (long.train.dropout, long.optim.weight_decay) == (0.2, 2.0)
    assert short.train.tokens < 4 * words < long.train.tokens <= 16 * words
    chosen = choose_in_time([config.with_train(dropout=0.1)], dataset, world, RATE, 10**6)
    assert (chosen.train.dropout, chosen.optim.weight_decay) == (0.1, 0.1)
    plenty = choose_in_time([config], dataset_of(10**9, dataset), world, RATE, 10**9)
    assert plenty.train.dropout == 0.0


def test_text_that_is_read_often_is_left_when_the_loss_no_longer_falls(dataset: Dataset) -> None:
    """Where the budget and the patience are not asked for; what was asked for stays as it is."""
    config, world = config_of("tiny")
    text = dataset_of(300_000, dataset)
    short, long = (choose_in_time([config], text, world, RATE, seconds) for seconds in (1_000, 10**6))
    assert short.train.tokens < 600_000 < long.train.tokens
    assert (short.train.patience, long.train.patience) == (0, PATIENCE)
    never = config.with_train(patience=0)
    assert choose_in_time([never], text, world, RATE, 10**6).train.patience == 0
    assert [resolve_config(each, text, world).train.patience for each in (config, never)] == [PATIENCE, 0]
    assert resolve_config(config.with_train(tokens=10**7), text, world).train.patience == 0
    assert resolve_config(config, dataset_of(10**9, dataset), world).train.patience == 0


def test_a_time_that_is_too_short_is_refused(dataset: Dataset) -> None:
    config, world = config_of("tiny")
    assert tokens_in_time(config, dataset, world, 1.0, 5) == 0
    with pytest.raises(UsageError, match="5s is too short"):
        choose_in_time([config], dataset, world, 1.0, 5)


def test_a_text_shorter_than_a_window_is_refused(dataset: Dataset) -> None:
    config, world = config_of("tiny")
    long = config.model_copy(update={"model": config.model.model_copy(update={"context": 10**6})})
    with pytest.raises(DataError, match="too small"):
        choose_in_time([long], dataset, world, RATE, 60)
    assert choose_in_time([long, config], dataset, world, RATE, 60).model.context == 32


def test_time_that_the_text_leaves_goes_into_shorter_steps(dataset: Dataset) -> None:
    config, world = config_of("tiny")
    text = dataset_of(1_000_000, dataset)
    tight, roomy = (choose_in_time([config], text, world, RATE, seconds) for seconds in (30_000, 10**7))
    assert tight.train.tokens_per_step == 0, "the default: all of the time is used for tokens"
    assert 1_024 <= roomy.train.tokens_per_step < 2_048
    assert run_seconds(roomy, text, world, RATE) <= 10**7
    asked = config.with_train(tokens_per_step=4_096)
    assert choose_in_time([asked], text, world, RATE, 10**7).train.tokens_per_step == 4_096


def test_the_text_that_is_read_grows_with_the_time() -> None:
    world = config_of("tiny")[1]
    minutes = [bytes_in_time(world, 1e12, 60 * count) for count in (2, 10, 60)]
    assert minutes == pytest.approx([minutes[0], 5 * minutes[0], 30 * minutes[0]], rel=1e-6)
    assert [default_tokenizer(size) for size in minutes] == ["bpe:4096", "bpe:8192", "gpt2"]

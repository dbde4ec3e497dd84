"""What follows from the data: the preset, the budget, the tokenizer, and which budgets are refused."""

from dataclasses import replace
from typing import Any

import pytest

from llamactl.config.schema import build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.dataset_info import DatasetInfo, Shard
from llamactl.corpus.sources import default_tokenizer
from llamactl.distributed.context import init_device
from llamactl.errors import UsageError
from llamactl.planning.budget import MOST_EPOCHS, check_budget
from llamactl.planning.defaults import (
    MOST_VALIDATED,
    affordable_teachers,
    default_budget,
    default_eval_tokens,
    feedable_presets,
    worthwhile_tokens,
)  # fmt: skip
from llamactl.planning.plan import Plan, make_plan
from llamactl.planning.resolve import resolve_config


def info_of(dataset: Dataset, tokens: int, vocab_size: int) -> DatasetInfo:
    shard = Shard(file="train/00000.npy", tokens=tokens, documents=1, text_bytes=4 * tokens, sha256="0" * 64)
    return dataset.info.model_copy(update={"shards": (shard,), "vocab_size": vocab_size})


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "preset"),
    [
        (10_000, 2_048, "tiny"),
        (2_643_594, 4_096, "tiny"),  # the sample
        (100_000_000, 16_384, "10m"),
        (9_040_000_000, 50_257, "150m"),  # OpenWebText
        (15_000_000_000_000, 50_257, "150m"),
    ],
)
def test_the_preset_is_the_largest_that_the_data_can_feed(dataset: Dataset, tokens: int, vocab_size: int, preset: str) -> None:
    assert feedable_presets(info_of(dataset, tokens, vocab_size))[0] == preset


def test_more_data_never_means_a_smaller_preset_or_budget(dataset: Dataset) -> None:
    order = ["tiny", "10m", "50m", "150m"]
    found = [info_of(dataset, 4**power, 4_096) for power in range(5, 22)]
    sizes, budgets = (
        [order.index(feedable_presets(info)[0]) for info in found],
        [default_budget(10**9, info) for info in found],
    )
    assert sizes == sorted(sizes)
    assert set(sizes) == {0, 1, 2, 3}
    assert budgets == sorted(budgets)
    assert budgets[0] == 4 * 4**5
    assert budgets[-1] == 3_000_000_000


@pytest.mark.parametrize(
    ("size", "tokenizer"),
    [
        (0, "bpe:2048"),
        (500_000, "bpe:2048"),
        (12_200_000, "bpe:4096"),
        (50_000_000, "bpe:8192"),
        (250_000_000, "bpe:16384"),
        (1 << 40, "gpt2"),
    ],
)
def test_the_tokenizer_follows_the_text(size: int, tokenizer: str) -> None:
    assert default_tokenizer(size) == tokenizer


def planned(dataset: Dataset, **train: Any) -> Plan:
    config = build_config([preset_settings("tiny"), {"model": {"context": 32}, "train": {"device": "cpu", **train}}])
    world = init_device(config.train)
    return make_plan(resolve_config(config, dataset, world), dataset, world, rate=1e11)


def test_a_budget_that_is_left_out_is_four_epochs_and_raises_no_eyebrow(dataset: Dataset) -> None:
    plan = planned(dataset)
    assert plan.epochs == pytest.approx(4, rel=0.05)
    check_budget(plan)


def test_budgets_beyond_sense_are_refused_with_one_that_is_not(dataset: Dataset) -> None:
    tokens = dataset.info.total("train", "tokens")
    check_budget(planned(dataset, tokens=(MOST_EPOCHS - 1) * tokens))
    many = planned(dataset, tokens=(MOST_EPOCHS + 2) * tokens)
    with pytest.raises(UsageError, match=r"epochs.*by heart.*\n.*\n.*Worth training: --tokens \S+\. .*--yes"):
        check_budget(many)
    slow = planned(dataset)
    slow = replace(slow, duration=replace(slow.duration, steps=1e8))
    with pytest.raises(UsageError, match=r"would take 1,157 days"):
        check_budget(slow)


def test_size_or_data_is_the_limit() -> None:
    assert worthwhile_tokens(1_000, 1e9, 4) == 20_000
    assert worthwhile_tokens(1_000_000, 1_000, 4) == 4_000
    assert worthwhile_tokens(1_000_000, 1_000, 16) == 16_000


def test_a_validation_reads_no_more_than_tells_more(dataset: Dataset) -> None:
    split = Shard(file="val/00000.npy", tokens=10**9, documents=1, text_bytes=4, sha256="0" * 64)
    info = dataset.info.model_copy(update={"shards": (split,)})
    assert default_eval_tokens(3_000_000_000, info) == MOST_VALIDATED
    assert default_eval_tokens(100_000_000, info) == 2_000_000


def test_time_that_a_used_up_text_leaves_buys_teachers() -> None:
    """As many as fit, each the length of the first run, and a student that reads what all of them predict."""
    config = build_config([preset_settings("tiny"), {"train": {"dropout": 0.2}}])
    found = [affordable_teachers(config, 16.0, 100.0, 100.0, left, 1) for left in (0, 250, 270, 399, 401, 540, 10**6)]
    assert found == [0, 0, 2, 2, 3, 4, 4]
    assert [affordable_teachers(config, 16.0, 100.0, 100.0, 301, trained) for trained in (1, 2, 3, 4)] == [2, 3, 3, 4]
    assert affordable_teachers(config, 12.0, 100.0, 100.0, 10**6, 1) == 0, "more epochs of the first run were the better use"
    assert affordable_teachers(config.with_train(dropout=0.0), 16.0, 100.0, 100.0, 10**6, 1) == 0
    # The first ended early after a quarter of its budget; the last one may take all of it.
    assert [affordable_teachers(config, 16.0, 100.0, 400.0, left, 1) for left in (700, 800, 10**6)] == [0, 2, 4]

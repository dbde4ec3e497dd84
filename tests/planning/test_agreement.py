"""plan, train, --time and quickstart agree, from 10 kB of text to 1 TB: what one proposes no other refuses or complains of."""

import re
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.dataset_info import Shard
from llamactl.corpus.sources import default_tokenizer
from llamactl.distributed.context import World, init_device
from llamactl.errors import UsageError
from llamactl.planning.budget import MOST_DAYS, MOST_EPOCHS, advise_budget, check_budget
from llamactl.planning.defaults import REGULARIZED_EPOCHS, WORTHWHILE_EPOCHS, feedable_presets
from llamactl.planning.plan import Plan, make_plan
from llamactl.planning.resolve import resolve_config
from llamactl.planning.timed import choose_in_time, run_seconds
from llamactl.units import read_count, read_time

TEXTS: list[Any] = [10**power for power in range(4, 13)]  # bytes
TEXTS += [pytest.param(3 * size, marks=pytest.mark.slow) for size in TEXTS[:-1]]
DROPOUTS = {"auto": 0.0, "tiny": 0.2}
PRESETS = ("auto", "tiny", "10m", "50m", "150m", "350m")
BUDGETS = (0, 20_000, 256_000, 20_000_000, 3_000_000_000)
RATES = (5e10, 3e11, 4e14)  # FLOP/s of a slow and a fast CPU, and of a GPU
BYTES_PER_TOKEN = 4


@pytest.fixture(autouse=True)
def plain_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins have no text to compress."""
    monkeypatch.setattr("llamactl.corpus.dataset.measure_compression", lambda *_: 2.388)


def dataset_of(size: int, like: Dataset) -> Dataset:
    """A dataset of so many bytes of text, whose tokens take no memory, with the tokenizer that `prepare` chooses."""
    name = default_tokenizer(size)
    vocab_size = 50_257 if name == "gpt2" else int(name.partition(":")[2])
    tokens = {"train": size * 99 // 100 // BYTES_PER_TOKEN, "val": size // 100 // BYTES_PER_TOKEN}
    shards = [
        Shard(file=f"{split}/00000.npy", tokens=count, documents=1, text_bytes=BYTES_PER_TOKEN * count, sha256="0" * 64)
        for split, count in tokens.items()
    ]
    parts = ([np.broadcast_to(np.uint16(5), count)] for count in tokens.values())
    info = like.info.model_copy(update={"shards": tuple(shards), "vocab_size": vocab_size})
    return Dataset("stand-in", info, like.tokenizer, *parts)


def config_of(preset: str, dataset: Dataset, tokens: int) -> Config:
    name = feedable_presets(dataset.info)[0] if preset == "auto" else preset
    train = {"device": "cpu", "precision": "fp32", "tokens": tokens, "dropout": DROPOUTS.get(preset, 0.0)}
    return build_config([preset_settings(name), {"train": train}])


def plan_of(config: Config, dataset: Dataset, world: World, rate: float) -> Plan:
    return make_plan(resolve_config(config, dataset, world), dataset, world, rate)


def is_accepted(plan: Plan) -> bool:
    try:
        check_budget(plan)
    except UsageError:
        return False
    return True


def follow(advice: str, config: Config, dataset: Dataset, world: World, rate: float) -> Config:
    """The config with the budget that a message names."""
    option, value = re.findall(r"--(tokens|time) (\S+?)[.]?(?=\s|$)", advice)[0]
    if option == "tokens":
        return config.with_train(tokens=read_count(value))
    return choose_in_time([config], dataset, world, rate, read_time(value))


@pytest.mark.parametrize("size", TEXTS)
def test_what_is_proposed_is_neither_refused_nor_complained_of(size: int, dataset: Dataset) -> None:
    data, world = dataset_of(size, dataset), init_device(config_of("tiny", dataset, 1).train)
    for preset, tokens, rate in product(PRESETS, BUDGETS, RATES):
        config = config_of(preset, data, tokens)
        plan, where = plan_of(config, data, world, rate), (size, preset, tokens, rate)
        messages = [advise_budget(plan, config.train)]
        try:
            check_budget(plan)
        except UsageError as error:
            messages.append(error.fix)
        for message in filter(None, messages):
            followed = follow(message, config, data, world, rate)
            made = plan_of(followed, data, world, rate)
            advice = advise_budget(made, followed.train)
            assert is_accepted(made), (where, message)
            assert not advice.startswith("Your text"), (where, message, advice)
            assert "--tokens" not in message or not advice, (where, message, advice)
        if not tokens:
            assert not advise_budget(plan, config.train), (where, "the default")
            assert plan.epochs < MOST_EPOCHS
            assert is_accepted(plan) == (plan.duration.total <= MOST_DAYS * 86_400), where


@pytest.mark.parametrize("size", TEXTS)
def test_a_time_buys_a_run_that_ends_in_it_and_is_sensible(size: int, dataset: Dataset) -> None:
    data, world = dataset_of(size, dataset), init_device(config_of("tiny", dataset, 1).train)
    configs = [config_of(name, data, 0) for name in feedable_presets(data.info)]
    losses: dict[float, list[float]] = {rate: [] for rate in RATES}
    for seconds, rate in product((120, 600, 7_200, 86_400), RATES):
        chosen = choose_in_time(configs, data, world, rate, seconds)
        plan = plan_of(chosen, data, world, rate)
        assert run_seconds(chosen, data, world, rate) <= seconds
        assert is_accepted(plan)
        most = REGULARIZED_EPOCHS if chosen.train.dropout else WORTHWHILE_EPOCHS
        assert plan.epochs * (1 - 1 / plan.steps) <= most, "but for the last step"
        assert not advise_budget(plan, chosen.train).startswith("Your text")
        assert plan.loss is not None
        losses[rate].append(plan.loss.loss)
    for found in losses.values():
        # Budgets are rounded to whole steps, which are shorter where time is left.
        assert all(later <= loss + 1e-5 for loss, later in pairwise(found)), "more time never buys less"

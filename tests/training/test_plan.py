"""The receipt: what is worked out before the first step."""

from collections.abc import Callable

import pytest

from llamactl.artifacts import Dataset
from llamactl.config import Config, build, preset
from llamactl.errors import BadData, BadUsage, NoRoom
from llamactl.model.llama import count, embeddings
from llamactl.training import plan as planning
from llamactl.training.optimizers import CONTINUED_RATE
from llamactl.training.plan import flops_per_token, plan, resolve
from llamactl.training.world import World, join

Configured = Callable[..., tuple[Config, World]]


def planned(dataset: Dataset, *layers: dict[str, object]) -> tuple[Config, planning.Plan]:
    config = build([preset("150m"), {"train": {"device": "cpu"}}, *layers])
    world = join(config.train)
    config = resolve(config, dataset, world)
    return config, plan(config, dataset, world, rate=1e12)


@pytest.mark.parametrize(
    ("tokens", "low", "high"),
    [(256_000, 13_000, 16_500), (10**8, 120_000, 150_000), (10**9, 320_000, 370_000), (10**11, 524_288, 524_288)],
)
def test_tokens_per_step_follow_from_the_budget(dataset: Dataset, tokens: int, low: int, high: int) -> None:
    config, _ = planned(dataset, {"train": {"tokens": tokens}})
    assert low <= config.train.tokens_per_step <= high
    assert config.train.tokens_per_step % config.model.context == 0


def test_no_zeros_are_left_and_resolving_again_changes_nothing(dataset: Dataset) -> None:
    config, _ = planned(dataset, {"train": {"tokens": 256_000}})
    numbers = {**config.train.model_dump(exclude={"seed"}), **config.model.model_dump(), "lr": config.optim.lr}
    assert all(value != 0 for value in numbers.values() if not isinstance(value, bool))
    assert resolve(config, dataset, join(config.train)) == config


def test_trained_weights_learn_more_slowly_unless_a_rate_is_given(dataset: Dataset) -> None:
    fresh, _ = planned(dataset)
    continued, _ = planned(dataset, {"train": {"init_from": "a@1"}})
    assert continued.optim.lr == pytest.approx(CONTINUED_RATE * fresh.optim.lr)
    given, _ = planned(dataset, {"train": {"init_from": "a@1"}, "optim": {"lr": 0.5}})
    assert given.optim.lr == 0.5


def test_the_receipt_adds_up(dataset: Dataset) -> None:
    config, made = planned(dataset, {"train": {"tokens": 256_000}})
    assert made.parameters == count(config.model)
    assert made.steps * made.tokens_per_step == made.tokens >= 256_000
    assert made.tokens - 256_000 < made.tokens_per_step
    assert made.flops == made.tokens * flops_per_token(config.model)
    assert made.smoke_test


def test_the_vocabulary_is_padded_to_128(dataset: Dataset) -> None:
    config, _ = planned(dataset)
    assert config.model.vocab_size == 512
    with pytest.raises(BadUsage, match="512 token ids"):
        planned(dataset, {"model": {"vocab_size": 256}})


def test_flops_are_palms() -> None:
    """798 MFLOP a token for 150m with GPT-2's vocabulary, of which attention is 113."""
    model = build([preset("150m")]).model.model_copy(update={"vocab_size": 50_304})
    assert flops_per_token(model) == pytest.approx(798.0e6, rel=1e-3)
    assert 6 * (count(model) - embeddings(model)) < flops_per_token(model)


def test_what_is_too_small_or_too_big_is_said_before_the_first_step(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadData, match="too small"):
        planned(dataset, {"model": {"context": 10**6}})
    monkeypatch.setattr(planning, "free_memory", lambda device: 10**9)
    with pytest.raises(NoRoom, match="does not fit") as caught:
        planned(dataset)
    assert caught.value.code == 4


def test_micro_batches_are_dealt_out_evenly(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MICRO_TOKENS", {"cpu": 5 * 1024})
    config, _ = planned(dataset, {"train": {"tokens": 256_000, "tokens_per_step": 14 * 1024}})
    assert config.train.micro_batch == 5


def test_many_epochs_are_counted(dataset: Dataset) -> None:
    _, made = planned(dataset, {"train": {"tokens": 10 * dataset.info.total("train", "tokens")}})
    assert made.epochs == pytest.approx(10, rel=0.1)

"""Dropout of channels: the share that was asked for, a function of a window's place alone, and nothing outside training."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from llamactl.config.schema import Config
from llamactl.corpus.batches import Batches, Windows
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.training.dropout import channel_factors, load_micro_batches
from llamactl.training.events import Stepped, Validated
from llamactl.training.trainer import train_run

Configured = Callable[..., tuple[Config, World]]
CPU = torch.device("cpu")


def test_factors_have_the_share_and_leave_the_mean(configured: Configured) -> None:
    config, _ = configured(train={"dropout": 0.25})
    factors = channel_factors(np.arange(400), config)
    assert factors is not None
    assert factors.shape == (400, 1 + 2 * 2, 32)
    assert torch.allclose(factors[factors > 0], torch.tensor(4 / 3))
    assert (factors == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert factors.mean().item() == pytest.approx(1, abs=0.01)
    assert channel_factors(np.zeros(0, np.int64), config) is None


def test_they_depend_on_place_and_seed_alone(configured: Configured, dataset: Dataset) -> None:
    config, _ = configured(train={"dropout": 0.2})
    windows = Windows(dataset.train, 32)

    def loaded(rank: int, size: int, most: int) -> list[torch.Tensor]:
        found = load_micro_batches(Batches(windows, 8, "k", rank, size), config, CPU, 5, most)
        return [row for batch in found if batch.dropout is not None for row in batch.dropout]

    whole = loaded(0, 1, 8)
    assert torch.equal(torch.stack(whole), torch.stack(loaded(0, 1, 3)))
    for rank in range(3):
        assert torch.equal(torch.stack(loaded(rank, 3, 2)), torch.stack(whole[rank::3]))
    other, _ = configured(train={"dropout": 0.2, "seed": 1})
    place = np.array([40])
    first, second = channel_factors(place, config), channel_factors(place, other)
    assert first is not None
    assert second is not None
    assert torch.equal(first[0], whole[0])
    assert not torch.equal(first, second)


def test_a_channel_that_is_left_out_is_left_out_at_each_position(configured: Configured) -> None:
    config, _ = configured()
    model, tokens = Llama(config.model), torch.arange(12)[None]
    added: list[torch.Tensor] = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, output: added.append(output - inputs[0]))
    factors = torch.ones(1, 5, 32)
    assert torch.equal(model.hidden(tokens), model.hidden(tokens, dropout=factors))
    factors[0, 1:3, 7] = 0
    model.hidden(tokens, dropout=factors)
    *_, last = added
    assert (last[..., 7] == 0).all()
    assert (last[..., 6] != 0).all()
    factors[0, 0] = 0
    assert not model.hidden(tokens, dropout=factors)[0, 0].isnan().any()


@pytest.mark.parametrize("recompute", ["off", "on"])
def test_training_learns_with_it_and_validation_is_without(recompute: str, configured: Configured, dataset: Dataset) -> None:
    losses, validation = {}, {}
    for dropout in (0.0, 0.3):
        config, world = configured(train={"dropout": dropout, "activation_checkpointing": recompute})
        run = RunDir.from_name(f"dropout-{dropout}")
        run.path.mkdir(parents=True)
        events = list(train_run(config, dataset, run, world, 1e12))
        losses[dropout] = [event.loss for event in events if isinstance(event, Stepped)]
        validation[dropout] = [event.loss for event in events if isinstance(event, Validated)]
    assert losses[0.3] != losses[0.0]
    assert validation[0.3][-1] < validation[0.3][0]
    assert validation[0.3][-1] < losses[0.3][-1], "what is left out makes it harder"

"""Dropout of elements: the share that was asked for, a function of a window's place alone, and nothing outside training."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from llamactl.config.schema import Config
from llamactl.corpus.batches import Batches, Windows
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.model.dropout import drop_elements
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.training.dropout import draw_seeds, load_micro_batches
from llamactl.training.events import Stepped, Validated
from llamactl.training.trainer import train_run

Configured = Callable[..., tuple[Config, World]]
CPU = torch.device("cpu")


def test_elements_have_the_share_and_leave_the_mean(configured: Configured) -> None:
    config, _ = configured(train={"dropout": 0.25})
    seeds = draw_seeds(np.arange(400), config)
    assert seeds is not None
    assert seeds.shape == (400, 1 + 2 * 2, 2)
    for row in range(5):
        found = drop_elements(torch.ones(400, 16, 32), seeds, row)
        assert torch.allclose(found[found > 0], torch.tensor(4 / 3))
        assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
        for axis in range(3):  # no window, position or channel is left out more than others
            shares = (found == 0).float().mean([other for other in range(3) if other != axis])
            spread = (0.25 * 0.75 / (found.numel() / len(shares))) ** 0.5
            assert shares.std().item() == pytest.approx(spread, rel=0.4)
    assert draw_seeds(np.zeros(0, np.int64), config) is None


def test_sublayers_leave_out_other_elements(configured: Configured) -> None:
    """As many in common as chance has, also for windows that follow one another."""
    config, _ = configured(train={"dropout": 0.5})
    seeds = draw_seeds(np.arange(2), config)
    assert seeds is not None
    left = [drop_elements(torch.ones(2, 64, 32), seeds, row) == 0 for row in range(5)]
    for a in range(5):
        assert (left[a][0] == left[a][1]).float().mean().item() == pytest.approx(0.5, abs=0.05)
        for b in range(a):
            assert (left[a] == left[b]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_compiled_code_leaves_out_the_same_elements(configured: Configured) -> None:
    config, _ = configured(train={"dropout": 0.2})
    seeds, x = draw_seeds(np.arange(3), config), torch.randn(3, 40, 32)
    compiled = torch.compile(drop_elements, dynamic=False)
    for row in range(5):
        assert torch.equal(compiled(x, seeds, row), drop_elements(x, seeds, row))


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
    first, second = draw_seeds(place, config), draw_seeds(place, other)
    assert first is not None
    assert second is not None
    assert torch.equal(first[0], whole[0])
    assert not torch.equal(first, second)


def test_what_is_left_out_is_not_added(configured: Configured) -> None:
    """The residual stream keeps the elements that a sublayer does not write; without dropout nothing is left out."""
    config, _ = configured(train={"dropout": 0.5})
    model, tokens = Llama(config.model), torch.arange(12)[None]
    added: list[torch.Tensor] = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, output: added.append(output - inputs[0]))
    seeds = draw_seeds(np.arange(1), config)
    assert seeds is not None
    model.hidden(tokens, dropout=seeds)
    by_none = (drop_elements(torch.ones(1, 12, 32), seeds, 1) == 0) & (drop_elements(torch.ones(1, 12, 32), seeds, 2) == 0)
    assert torch.equal(added[0] == 0, by_none)
    assert by_none.any()
    seeds[..., 1] = 0
    assert torch.equal(model.hidden(tokens), model.hidden(tokens, dropout=seeds))


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

"""What tests of long runs stand on."""

from collections.abc import Callable

import pytest

from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World

Configured = Callable[..., tuple[Config, World]]
Made = tuple[Config, World, Dataset]


@pytest.fixture
def made(configured: Configured, dataset: Dataset) -> Made:
    """Thirty steps with a checkpoint every third."""
    config, world = configured(train={"tokens": 7680, "save_every": 3, "eval_every": 10, "prompts": ["A"]})
    return config, world, dataset

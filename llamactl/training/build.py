"""Build what a run trains and what it trains on: the model and its loss, with weights drawn from a seed, and the batches."""

import torch

from llamactl.config.schema import Config
from llamactl.corpus.batches import Batches, Windows
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.targets import window_rule
from llamactl.distributed.context import World
from llamactl.distributed.dtensor import copy_into
from llamactl.distributed.parallelize import apply_fsdp
from llamactl.model.llama import Llama, build_empty
from llamactl.model.objective import NextToken


def build_batches(dataset: Dataset, config: Config, world: World) -> Batches:
    """Cut the training text into windows, in an order that the dataset's digest and `data.seed` decide."""
    windows = Windows(dataset.train, config.model.context, window_rule(dataset, config.data, config.model.context))
    per_step = config.train.tokens_per_step // config.model.context
    return Batches(windows, per_step, f"{dataset.info.digest} {config.data.seed}", world.rank, world.size)


def build_objective(config: Config, world: World) -> NextToken:
    """Build a model and its loss in fp32; a seed gives the same weights on every device and with every sharding."""
    # On the meta device first, so that no rank allocates the full model before it is sharded.
    objective = NextToken(build_empty(config.model))
    if world.shards > 1:
        apply_fsdp(objective, world)
    objective.to_empty(device=world.device)
    # to_empty gave the head and the embedding memory of their own.
    objective.model.tie_weights()
    objective.model.model.activation_checkpointing = config.train.activation_checkpointing == "on"
    init_weights(objective.model, config.train.seed)
    return objective


def init_weights(model: Llama, seed: int) -> None:
    """Draw the weights from a seed, in place, one full tensor at a time."""
    # In a fixed order and unsharded, so that the weights do not depend on the number of ranks.
    torch.manual_seed(seed)
    for parameter, weights in model.initial_weights():
        copy_into(parameter, weights)

"""Choose the batch size: the tokens of a step, the micro-batch, and whether activations are recomputed."""

import math
from typing import Literal

from llamactl.config.schema import Config, ModelConfig, TrainConfig
from llamactl.distributed.context import World
from llamactl.planning.flops import flops_per_token, update_flops
from llamactl.planning.memory import free_memory, held_bytes, mask_bytes, teacher_bytes, window_bytes

# Tokens of a step grow with the budget, by power laws between three points: with 2.6M parameters 1,024 were best for a budget
# of 245,760 tokens, and 3,072 better than 5,376 for 3.3 million (docs/recipe.md); published runs of 1.3 billion are best with
# about 262,144.
BEST_STEPS = ((245_760, 1_024), (3_311_616, 3_072), (1_300_000_000, 262_144))
LARGEST_STEP = 524_288
# Muon's products take as long for a few tokens as for many: a step has enough tokens that they are at most three sevenths of
# the work of its gradients. More of them, in shorter steps, cost more time than they gain (docs/recipe.md).
MUON_SHARE = 3 / 7
# Tokens of a micro-batch above which a device gains no speed: a CPU's caches overflow, a GPU is busy already.
MICRO_TOKENS = {"cpu": 2_048}
MICRO_TOKENS_ON_GPU = 32_768


def default_tokens_per_step(tokens: int, model: ModelConfig, optimizer: str) -> float:
    """Return the default tokens per step for a budget of `tokens`."""
    (low, small), (high, large) = BEST_STEPS[:2] if tokens < BEST_STEPS[1][0] else BEST_STEPS[1:]
    size = small * (tokens / low) ** (math.log(large / small) / math.log(high / low))
    muon_minimum = update_flops(model, optimizer) / (MUON_SHARE * flops_per_token(model))
    return max(muon_minimum, min(LARGEST_STEP, size))


def resolve_batch(train: TrainConfig, model: ModelConfig, optimizer: str, limit: int) -> tuple[int, int]:
    """Resolve the windows of a step and of a micro-batch, of which a device takes `limit` at most.

    All micro-batches have the same size, unless the config sets sizes that can't be divided.
    """
    if train.tokens_per_step:
        windows = round(train.tokens_per_step / model.context) or 1
        rounds = -(-windows // limit)
        return windows, min(windows, train.micro_batch or -(-windows // rounds))
    windows = round(default_tokens_per_step(train.tokens, model, optimizer) / model.context) or 1
    rounds = -(-windows // (train.micro_batch or limit))
    micro_batch = train.micro_batch or round(windows / rounds)
    # The default is rounded to full micro-batches; tokens_per_step, which someone set, is not.
    return rounds * micro_batch, micro_batch


def windows_per_rank(windows: int, processes: int) -> int:
    """Return the windows of a step on the busiest rank."""
    return -(-windows // processes)


def resolve_micro_batch(windows: int, setting: int, limit: int, processes: int) -> int:
    """Return the micro-batch per rank: the setting, else (0) the largest one that makes all micro-batches equal."""
    local = windows_per_rank(windows, processes)
    rounds = -(-local // limit)
    return min(local, setting or -(-local // rounds))


def max_micro_batch(config: Config, world: World) -> int:
    """Return the largest micro-batch that memory allows and that still gains speed."""
    # Only part of the free memory: the saved copy, the update and what the estimate misses take the rest.
    available = 0.6 * free_memory(world) - held_bytes(config.model, config.optim.name, world) - teacher_bytes(config, world)
    useful = MICRO_TOKENS.get(world.device.type, MICRO_TOKENS_ON_GPU) // config.model.context
    window = window_bytes(config.model, resolve_recompute(config, world) == "on", world) + mask_bytes(config, world)
    return max(1, min(useful, int(available // window)))


def resolve_recompute(config: Config, world: World) -> Literal["on", "off"]:
    """Resolve activation checkpointing: `auto` is on only where a single window would not fit without it."""
    setting, model = config.train.activation_checkpointing, config.model
    if setting != "auto":
        return setting
    # Off where possible: a second forward pass is a third more work.
    needed = held_bytes(model, config.optim.name, world) + window_bytes(model, False, world) + mask_bytes(config, world)
    return "off" if needed < 0.6 * free_memory(world) else "on"

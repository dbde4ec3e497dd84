"""How big a run's pieces are: FLOPs, bytes, the tokens of a step and how many of them are on the device at once."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

import torch

from llamactl.config import ModelConfig, Switch, TrainConfig
from llamactl.model.llama import count, embeddings
from llamactl.model.objective import CHUNK
from llamactl.training.muon import newton_schulz_flops
from llamactl.training.world import World

# Tokens of a step grow with the budget: with 1,024 a model of 2.6M parameters learned most from 245,760 tokens
# (docs/recipe.md), with 262,144 the runs that others publish learn most from 1.3 billion.
STEP_AT, STEP_EXPONENT = (245_760, 1_024), 0.65
LARGEST_STEP = 524_288

# Muon's products take as long for a few tokens as for many: a step has so many that they are a seventh of its work.
MUON_SHARE = 1 / 7

# Above this many tokens at once a device gains nothing: a CPU falls out of its caches, a GPU is busy.
MICRO_TOKENS = {"cpu": 2_048}
MICRO_TOKENS_ON_GPU = 32_768


def flops_per_token(model: ModelConfig) -> float:
    """FLOPs of training on a token: 6 per weight of a matrix, and 12 L H E T for attention (PaLM, arXiv 2204.02311)."""
    return 6 * matrix_weights(model) + 12 * model.layers * model.heads * model.head_width * model.context


def matrix_weights(model: ModelConfig) -> int:
    """Weights that tokens are multiplied with: the blocks' and the head's, but not the embedding's."""
    return count(model) - embeddings(model) + model.vocab_size * model.width


def update_flops(model: ModelConfig, optimizer: str, processes: int = 1) -> float:
    """FLOPs of moving the weights once, on the busiest of some processes: Muon's products, as AdamW has none."""
    if optimizer != "muon":
        return 0.0
    dealt = {shape: -(-number // processes) for shape, number in stacks(model).items()}
    return sum(number * newton_schulz_flops(min(shape), max(shape)) for shape, number in dealt.items())


def update_bytes(model: ModelConfig, optimizer: str, world: World) -> int:
    """Bytes that an update takes beside what is there anyway: Muon's, which moves all matrices of one shape at once, in fp32.

    Where processes share the work, each has its rows of all matrices twice, and the whole ones that it was dealt: received, put
    together and worked on. Later the replicas' own replace those.
    """
    if optimizer != "muon":
        return 0
    if world.size == 1:
        return 5 * max(4 * number * rows * columns for (rows, columns), number in stacks(model).items())
    needed = []
    for (rows, columns), number in stacks(model).items():
        parts = -(-4 * number * rows * columns // world.shards)
        dealt = 4 * -(-number // world.size) * rows * columns
        needed.append(2 * parts + max(6 * dealt, parts + dealt if world.replicas > 1 else 0))
    return max(needed)


def stacks(model: ModelConfig) -> Counter[tuple[int, int]]:
    """How many matrices of each shape, rows and columns as they are stored, the blocks have: q, k, v, o, gate, up, down."""
    query, key = model.heads * model.head_width, model.kv_heads * model.head_width
    width, hidden = model.width, model.hidden
    shapes = [(query, width), (key, width), (key, width), (width, query), *2 * [(hidden, width)], (width, hidden)]
    return Counter(model.layers * shapes)


def usual_step(tokens: int, model: ModelConfig, optimizer: str) -> float:
    """Tokens of a step that suit a budget, and that are worth an update of the weights."""
    at, size = STEP_AT
    worthwhile = update_flops(model, optimizer) / (MUON_SHARE * flops_per_token(model))
    return max(worthwhile, min(LARGEST_STEP, size * (tokens / at) ** STEP_EXPONENT))


def state_bytes(model: ModelConfig, optimizer: str, shards: int = 1) -> int:
    """Bytes of weights, gradients and optimizer state, all fp32: Muon keeps one number a weight, AdamW two.

    Each of `shards` processes has its part of everything.
    """
    total = count(model)
    matrices = total - embeddings(model) - (2 * model.layers + 1) * model.width
    return -(-4 * (2 * total + (2 * total - matrices if optimizer == "muon" else 2 * total)) // shards)


def block_weights(model: ModelConfig) -> int:
    """Parameters of a block."""
    return (count(model) - embeddings(model) - model.width) // model.layers


def root_weights(model: ModelConfig) -> int:
    """Parameters that are in no block: embedding, final norm and head."""
    return embeddings(model) + model.width


def gathered_bytes(model: ModelConfig, world: World) -> int:
    """Bytes of weights that are whole for a while though each process has but a part of them, and of their gradients.

    Two blocks, as the next one is fetched early, and a gradient in the format of products with its copy in fp32 that is added
    up; embedding and head in fp32 for as long as a micro-batch takes, with the head's gradient.
    """
    if world.shards == 1:
        return 0
    width = world.precision.dtype.itemsize
    return block_weights(model) * (3 * width + 4) + 4 * (root_weights(model) + model.vocab_size * model.width)


def checkpoint_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes of a checkpoint's tensors, which are everything but the gradients."""
    return state_bytes(model, optimizer) - 4 * count(model)


def window_bytes(model: ModelConfig, recompute: bool, world: World) -> int:
    """Bytes that a window keeps for its backward pass: what each layer saves, or with `recompute` its input alone."""
    width = world.precision.dtype.itemsize
    heads = (model.heads + 2 * model.kv_heads) * model.head_width
    layer = 20 * model.width + 4 * heads + width * (2 * model.width + 3 * heads + 4 * model.hidden)
    kept = 4 * model.width * model.layers + layer if recompute else model.layers * layer
    return model.context * (kept + 8 * model.width)


def chunk_bytes(model: ModelConfig, world: World) -> int:
    """Bytes of the logits that stand at once, with their gradient, and of the head in the format of products."""
    width = world.precision.dtype.itemsize
    return CHUNK * (4 + 2 * width) * model.vocab_size + (4 + width) * model.vocab_size * model.width


def free_memory(world: World) -> int:
    """Bytes that a process can still have on its device; of a CPU's memory all processes of the machine have a share."""
    if world.room:
        return world.room
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    return free_main_memory() // world.neighbours if world.device.type == "cpu" else 8 << 30


def free_main_memory() -> int:
    """Bytes of main memory that can be had: what the system would give up its file cache for, within a container's limit."""
    free = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        free.append(int(limit[0]) - int(used[0]))
    return min(free) if free else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def windows_of(train: TrainConfig, model: ModelConfig, optimizer: str, most: int) -> tuple[int, int]:
    """Windows of a step, and of a micro-batch: all micro-batches are of one size where nobody asked for another."""
    if train.tokens_per_step:
        windows = round(train.tokens_per_step / model.context) or 1
        rounds = -(-windows // most)
        return windows, min(windows, train.micro_batch or -(-windows // rounds))
    windows = round(usual_step(train.tokens, model, optimizer) / model.context) or 1
    rounds = -(-windows // (train.micro_batch or most))
    micro_batch = train.micro_batch or round(windows / rounds)
    return rounds * micro_batch, micro_batch


def own_windows(windows: int, processes: int) -> int:
    """Windows of a step that the busiest process has."""
    return -(-windows // processes)


def micro_batch_of(windows: int, wish: int, most: int, processes: int) -> int:
    """Windows at once where several processes share a step's: as many as were asked for, else all micro-batches alike."""
    own = own_windows(windows, processes)
    rounds = -(-own // most)
    return min(own, wish or -(-own // rounds))


def most_at_once(model: ModelConfig, optimizer: str, recompute: Literal["on", "off"], world: World) -> int:
    """As many windows as memory and sense allow a process."""
    room = 0.6 * free_memory(world) - _held(model, optimizer, world)
    sense = MICRO_TOKENS.get(world.device.type, MICRO_TOKENS_ON_GPU) // model.context
    return max(1, min(sense, int(room // window_bytes(model, recompute == "on", world))))


def recomputing(wish: Switch, model: ModelConfig, optimizer: str, world: World) -> Literal["on", "off"]:
    """Recomputing costs a third more work, so it is for windows that would not fit without."""
    if wish != "auto":
        return wish
    needed = _held(model, optimizer, world) + window_bytes(model, False, world)
    return "off" if needed < 0.6 * free_memory(world) else "on"


def _held(model: ModelConfig, optimizer: str, world: World) -> int:
    """Bytes that are there whatever the micro-batch."""
    return state_bytes(model, optimizer, world.shards) + chunk_bytes(model, world) + gathered_bytes(model, world)

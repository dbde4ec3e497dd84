"""What a run is about to do, worked out before its first step: sizes, steps, memory, time."""

import math
import os
from dataclasses import dataclass

import torch

from llamactl.artifacts import Dataset
from llamactl.config import Config, ModelConfig
from llamactl.corpus.batches import Windows
from llamactl.errors import BadData, BadUsage, NoRoom
from llamactl.model.llama import count, embeddings
from llamactl.training.optimizers import CONTINUED_RATE, EMBEDDING_SCALE, EMBEDDING_SCALE_TIED, peak_rate
from llamactl.training.world import World

# Tokens of a step grow with the budget D like D^0.38, as critical batch sizes do (nanochat's fit over its own sweeps),
# from 14 windows of 1,024 at 256,000 tokens to half a million.
STEP_AT = (256_000, 14_336)
STEP_EXPONENT = 0.38
LARGEST_STEP = 524_288

# Above this many tokens at once a device gains nothing: a CPU falls out of its caches, a GPU is busy.
MICRO_TOKENS = {"cpu": 2_048}
MICRO_TOKENS_ON_GPU = 32_768

SMOKE_TEST = 0.5  # tokens per parameter below which a run only shows that everything works


@dataclass(frozen=True)
class Plan:
    """The receipt: everything about a run that can be known before it starts."""

    parameters: int
    embedding_parameters: int
    steps: int
    tokens_per_step: int
    tokens: int
    micro_batch: int
    epochs: float
    flops: float
    seconds: float
    memory: int
    memory_free: int

    @property
    def tokens_per_parameter(self) -> float:
        """About 20 is where more tokens and more parameters pay alike (Hoffmann et al. 2022, arXiv 2203.15556)."""
        return self.tokens / self.parameters

    @property
    def smoke_test(self) -> bool:
        """Whether the budget is too small to learn much."""
        return self.tokens_per_parameter < SMOKE_TEST


def flops_per_token(model: ModelConfig) -> float:
    """FLOPs of training on a token: 6 per weight of a matrix, and 12 L H E T for attention (PaLM, arXiv 2204.02311)."""
    matrices = count(model) - embeddings(model) + model.vocab_size * model.width
    return 6 * matrices + 12 * model.layers * model.heads * model.head_width * model.context


def resolve(config: Config, dataset: Dataset, world: World) -> Config:
    """Replace each 0 ("work it out") by its value for this dataset and device."""
    model, optim, train = config.model, config.optim, config.train
    padded = -(-dataset.info.vocab_size // 128) * 128
    model = model.model_copy(update={"vocab_size": model.vocab_size or padded})
    if model.vocab_size < dataset.info.vocab_size:
        why = f"The dataset {dataset.name} has {dataset.info.vocab_size} token ids."
        raise BadUsage(f"model.vocab_size={model.vocab_size} is too small.", why, "Leave it out: it follows the dataset.")
    windows = round((train.tokens_per_step or _usual_step(train.tokens)) / model.context) or 1
    steps = -(-train.tokens // (windows * model.context))
    eval_every = train.eval_every or max(1, -(-steps // (10 if steps >= 100 else 3)))
    resolved = {
        "tokens_per_step": windows * model.context,
        "micro_batch": min(windows, train.micro_batch or _micro_batch(model, optim.name, windows, world)),
        "eval_every": eval_every,
        "eval_tokens": train.eval_tokens or max(16 * model.context, train.tokens // 50),
        "save_every": train.save_every or eval_every,
        "precision": world.precision.name,
    }
    share = CONTINUED_RATE if train.init_from else 1.0
    rates = {
        "lr": optim.lr or share * peak_rate(optim.name, model.width),
        "embedding_scale": optim.embedding_scale or (EMBEDDING_SCALE_TIED if model.tied else EMBEDDING_SCALE),
    }
    return config.model_copy(
        update={
            "model": model,
            "data": config.data.model_copy(update={"name": dataset.name}),
            "optim": optim.model_copy(update=rates),
            "train": train.model_copy(update=resolved),
        }
    )


def plan(config: Config, dataset: Dataset, world: World, rate: float) -> Plan:
    """The receipt of a resolved config, on a device with a matrix rate of `rate` FLOP/s; raises BadData, NoRoom."""
    model, train = config.model, config.train
    available = len(Windows(dataset.train, model.context))
    if not available:
        why = f"It has {dataset.info.total('train', 'tokens'):,} tokens; a window needs {model.context + 1:,}."
        raise BadData(f"The dataset {dataset.name} is too small.", why, "Prepare more text, or try: --set model.context=256")
    steps = -(-train.tokens // train.tokens_per_step)
    tokens = steps * train.tokens_per_step
    made = Plan(
        parameters=count(model),
        embedding_parameters=embeddings(model),
        steps=steps,
        tokens_per_step=train.tokens_per_step,
        tokens=tokens,
        micro_batch=train.micro_batch,
        epochs=tokens / (available * model.context),
        flops=tokens * flops_per_token(model),
        seconds=tokens * flops_per_token(model) / (usual_efficiency(model) * rate),
        memory=state_bytes(model, config.optim.name) + train.micro_batch * window_bytes(model, world),
        memory_free=free_memory(world.device),
    )
    if made.memory > made.memory_free:
        why = f"It needs about {made.memory / 1e9:.1f} GB; {made.memory_free / 1e9:.1f} GB are free."
        fix = "Try: --set train.micro_batch=1" if train.micro_batch > 1 else "Try a smaller --preset."
        raise NoRoom(f"{config.preset} does not fit into the memory of {world.device}.", why, fix)
    return made


def state_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes of weights, gradients and optimizer state, all fp32: Muon keeps one number a weight, AdamW two."""
    total = count(model)
    matrices = total - embeddings(model) - (2 * model.layers + 1) * model.width
    return 4 * (2 * total + (2 * total - matrices if optimizer == "muon" else 2 * total))


def window_bytes(model: ModelConfig, world: World) -> int:
    """Bytes that a window keeps for its backward pass: what each layer saves, and the logits with their gradient."""
    width = world.precision.dtype.itemsize
    heads = (model.heads + 2 * model.kv_heads) * model.head_width
    layer = 20 * model.width + 4 * heads + width * (2 * model.width + 3 * heads + 4 * model.hidden)
    return model.context * (model.layers * layer + (12 + width) * model.vocab_size)


def usual_efficiency(model: ModelConfig) -> float:
    """The share of a device's matrix rate that a step reaches: on two cores 0.25 at width 192, 0.46 at 768 (measured)."""
    return min(0.45, 0.25 * math.sqrt(model.width / 192))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else 8 << 30


def _usual_step(tokens: int) -> float:
    at, size = STEP_AT
    return min(LARGEST_STEP, size * (tokens / at) ** STEP_EXPONENT)


def _micro_batch(model: ModelConfig, optimizer: str, windows: int, world: World) -> int:
    """As many windows at once as memory and sense allow, dealt out evenly."""
    room = 0.6 * free_memory(world.device) - state_bytes(model, optimizer)
    most = min(MICRO_TOKENS.get(world.device.type, MICRO_TOKENS_ON_GPU) // model.context, room // window_bytes(model, world))
    micro_batches = -(-windows // max(1, int(most)))
    return -(-windows // micro_batches)

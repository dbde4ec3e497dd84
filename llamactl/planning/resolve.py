"""Resolve the settings that a config leaves open: batch size, sharding, compilation, learning rate."""

from dataclasses import replace
from typing import Literal

from llamactl.config.parameters import num_params
from llamactl.config.schema import Compilation, Config, ModelConfig
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.openings import held_out_openings
from llamactl.corpus.targets import window_rule
from llamactl.distributed.context import World
from llamactl.errors import UsageError
from llamactl.optim.build import CONTINUED_RATE, EMBEDDING_SCALE, EMBEDDING_SCALE_TIED, FINETUNED_RATE, default_lr
from llamactl.planning.batch_size import max_micro_batch, resolve_batch, resolve_micro_batch, resolve_recompute
from llamactl.planning.defaults import default_budget, default_eval_tokens, default_patience
from llamactl.planning.flops import flops_per_token
from llamactl.planning.memory import free_memory
from llamactl.planning.memory_estimate import estimate_memory

# FLOPs of a run below which compiling takes longer than it saves: about a minute of work on each device.
WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e16}
# FLOPs of a micro-batch per layer below which a GPU waits for the host: the fastest take a millisecond for them, and the host
# as long for the 50 launches of a layer. The launches are rehearsed, the times are estimates.
GRAPHED_BELOW = 4e11
ROOMY = 0.5  # the fraction of free memory that a run with a graph may take, as nothing else can use the graph's meanwhile
PROMPTS = 3  # held-out openings that are sampled at each validation
SAFE = 0.95  # the fraction of free memory that `auto` may plan to use: the rest is for fragmentation


def choose_sharding(config: Config, dataset: Dataset, world: World) -> World:
    """Return the world with the `shards` that `train.parallel` sets; `auto` shards only a model that is too large for a rank.

    Free memory differs between ranks, so rank 0 must decide for all. Raises UsageError for a strategy that is not possible.
    """
    strategy, _, number = config.train.parallel.partition(":")
    if world.size == 1:
        return world
    if strategy == "auto":
        return replace(world, shards=_auto_shards(config, dataset, world))
    shards = {"ddp": 1, "fsdp": world.size, "hsdp": int(number or world.local_world_size)}[strategy]
    if world.size % shards:
        divisors = ", ".join(str(size) for size in range(2, world.size) if world.size % size == 0)
        fix = f"Numbers that can: {divisors}" if divisors else "Try: --parallel ddp"
        why = "Each group holds one copy of the model."
        raise UsageError(f"{world.size} processes can't be divided into groups of {shards}.", why, fix)
    # Each shard would find other gradients not finite, and set another loss scale.
    if shards > 1 and world.precision.name == "fp16":
        why = "Ranks that shard a model would scale their gradients differently."
        raise UsageError(f"fp16 does not work with {strategy}.", why, "Try: --precision bf16, or --parallel ddp")
    return replace(world, shards=shards)


def possible_shards(world: World) -> list[int]:
    """Return the numbers of ranks that can hold one copy of the model: one, those of a machine, or all."""
    machine = [world.local_world_size] if world.size % world.local_world_size == 0 else []
    return [1] if world.precision.name == "fp16" else sorted({1, *machine, world.size})


def _auto_shards(config: Config, dataset: Dataset, world: World) -> int:
    """Return the smallest number of shards that fits the model; all ranks if none does."""
    # The fewer ranks share a copy, the less they send, and groups within a machine use its fast links.
    choices = possible_shards(world)
    for shards in choices[:-1]:
        sharded = replace(world, shards=shards)
        if estimate_memory(resolve_config(config, dataset, sharded), sharded).required_bytes <= SAFE * free_memory(sharded):
            return shards
    return choices[-1]


def resolve_config(config: Config, dataset: Dataset, world: World) -> Config:
    """Replace each setting of 0 or `auto` by its value for this dataset and device.

    Tokens per step do not depend on the number of ranks.
    """
    model, optim = _fit_vocab(config.model, dataset), config.optim
    window_rule(dataset, config.data, model.context)  # which refuses windows that don't fit the dataset
    tokens, patience = config.train.tokens, max(0, config.train.patience)  # a budget that was asked for is trained to its end
    if not tokens:
        tokens = default_budget(num_params(model), dataset.info)
        patience = default_patience(config.train, tokens, dataset.info)
    config = config.with_train(tokens=tokens, patience=patience).model_copy(update={"model": model})
    train = config.train
    windows, micro_batch = _batch(config, world)
    steps = -(-train.tokens // (windows * model.context))
    eval_every = train.eval_every or max(1, -(-steps // (10 if steps >= 100 else 3)))
    resolved = {
        "tokens_per_step": windows * model.context,
        "micro_batch": micro_batch,
        "eval_every": eval_every,
        "eval_tokens": train.eval_tokens or default_eval_tokens(train.tokens, dataset.info),
        "prompts": held_out_openings(dataset, PROMPTS) if train.prompts == ("auto",) else train.prompts,
        "save_every": train.save_every or eval_every,
        "precision": world.precision.name,
        "compile": _compile(train.compile, steps * windows * model.context * flops_per_token(model), world),
        "activation_checkpointing": resolve_recompute(config, world),
    }
    lr_scale = _fraction_of_rate(config)
    rates = {
        "lr": optim.lr or lr_scale * default_lr(optim.name, model.dim),
        "embedding_scale": optim.embedding_scale or (EMBEDDING_SCALE_TIED if model.tie_embeddings else EMBEDDING_SCALE),
    }
    complete = config.model_copy(
        update={
            "data": config.data.model_copy(update={"name": dataset.name}),
            "optim": optim.model_copy(update=rates),
            "train": train.model_copy(update=resolved),
        }
    )
    return _add_graphs(complete, world) if train.compile == "auto" else complete


def _fraction_of_rate(config: Config) -> float:
    """Return the fraction of the default learning rate for a run: trained weights take less of it than fresh ones."""
    if not config.train.init_from:
        return 1.0
    return FINETUNED_RATE if config.data.loss_on == "assistant" else CONTINUED_RATE


def _fit_vocab(model: ModelConfig, dataset: Dataset) -> ModelConfig:
    """Set the vocabulary size to that of a dataset; raises UsageError when the config sets a smaller one."""
    # Rounded up to a multiple of 128, whatever the dataset (docs/decisions.md).
    rows = model.vocab_size or -(-dataset.info.vocab_size // 128) * 128
    if rows < dataset.info.vocab_size:
        why = f"The dataset {dataset.name} has {dataset.info.vocab_size} token ids."
        raise UsageError(f"model.vocab_size={rows} is too small.", why, "Leave it out: it follows the dataset.")
    return model.model_copy(update={"vocab_size": rows})


def _batch(config: Config, world: World) -> tuple[int, int]:
    """Resolve the windows of a step and of a rank's micro-batch."""
    # The step is that of a single device, so that a run is the same on any number of ranks.
    single = replace(world, rank=0, size=1, local_world_size=1, shards=1)
    windows, micro_batch = resolve_batch(config.train, config.model, config.optim.name, max_micro_batch(config, single))
    if world.size == 1:
        return windows, micro_batch
    return windows, resolve_micro_batch(windows, config.train.micro_batch, max_micro_batch(config, world), world.size)


def _compile(setting: Compilation, flops: float, world: World) -> Literal["on", "off", "graphs"]:
    """Resolve torch.compile: `auto` is on for runs of enough FLOPs; where there is no compiler, training turns it off."""
    if setting != "auto":
        return setting
    return "on" if world.device.type != "mps" and flops > WORTH_COMPILING.get(world.device.type, 0) else "off"


def _add_graphs(config: Config, world: World) -> Config:
    """Replay the micro-batches of a compiled run as a CUDA graph where they are small and alike, and memory suffices."""
    train, model = config.train, config.model
    is_small = train.micro_batch * model.context * flops_per_token(model) < GRAPHED_BELOW * model.n_layers
    # Kept apart, windows have as many documents as they happen to have.
    alike = train.tokens_per_step % (train.micro_batch * model.context) == 0 and not config.data.separate_documents
    if train.compile != "on" or world.device.type != "cuda" or world.size > 1 or not (is_small and alike):
        return config
    graphed = config.with_train(compile="graphs")
    return graphed if estimate_memory(graphed, world).required_bytes <= ROOMY * free_memory(world) else config

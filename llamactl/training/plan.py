"""What a run is about to do, worked out before its first step: sizes, steps, memory, time."""

from dataclasses import dataclass, replace
from typing import Literal

from llamactl.artifacts import Dataset
from llamactl.config import Config, ModelConfig, Switch
from llamactl.corpus.batches import Windows
from llamactl.errors import BadData, BadUsage
from llamactl.model.llama import count, embeddings
from llamactl.training.expectation import Expectation, expect
from llamactl.training.forecast import Duration, Memory, checkpoints_at_most, duration, memory, pace
from llamactl.training.optimizers import CONTINUED_RATE, EMBEDDING_SCALE, EMBEDDING_SCALE_TIED, peak_rate
from llamactl.training.sizing import (
    checkpoint_bytes,
    flops_per_token,
    free_memory,
    micro_batch_of,
    most_at_once,
    recomputing,
    windows_of,
)  # fmt: skip
from llamactl.training.traffic import traffic
from llamactl.training.world import World

# FLOPs of a run below which compiling takes longer than it saves: about a minute of work on each.
WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e16}

SAFE = 0.95  # the share of free memory that may be needed where nobody chose: the rest is for what lies between tensors

LEAST_VALIDATED = 4_096  # tokens: the loss of fewer says nothing

SMOKE_TEST = 0.5  # tokens per parameter below which a run only shows that everything works


@dataclass(frozen=True)
class Plan:
    """The receipt: all that can be known of a run before it starts. `loss` is None where nothing like it was measured.

    Memory, the micro-batch and the bytes `sent` in a step are those of one of the `processes`.
    """

    parameters: int
    embedding_parameters: int
    steps: int
    tokens_per_step: int
    tokens: int
    micro_batch: int
    processes: int
    parallel: str
    sent: int
    epochs: float
    flops: float
    duration: Duration
    memory: Memory
    memory_free: int
    checkpoint: int
    disk: int
    loss: Expectation | None

    @property
    def tokens_per_parameter(self) -> float:
        """About 20 is where more tokens and more parameters pay alike (Hoffmann et al. 2022, arXiv 2203.15556)."""
        return self.tokens / self.parameters

    @property
    def smoke_test(self) -> bool:
        """Whether the budget is too small to learn much."""
        return self.tokens_per_parameter < SMOKE_TEST


def arranged(config: Config, dataset: Dataset, world: World) -> World:
    """The world with as many `shards` as the config, which need not be resolved, wishes for; a world of one stays as it is.

    `auto` shares a copy of the model only where one process has no room for it, and then within a machine if that suffices.
    What is free differs between processes, so one of them decides (`world.led`). Raises BadUsage for a wish that can't be.
    """
    wish, _, number = config.train.parallel.partition(":")
    if world.size == 1:
        return world
    if wish == "auto":
        return replace(world, shards=_shards(config, dataset, world))
    shards = {"ddp": 1, "fsdp": world.size, "hsdp": int(number or world.neighbours)}[wish]
    if world.size % shards:
        fitting = ", ".join(str(each) for each in range(2, world.size) if world.size % each == 0)
        fix = f"Numbers that do: {fitting}" if fitting else "Try: --parallel ddp"
        raise BadUsage(f"{world.size} processes can't be groups of {shards}.", "Each group holds one copy of the model.", fix)
    if shards > 1 and world.precision.name == "fp16":
        why = "Processes that share a copy of the model would scale its gradients differently."
        raise BadUsage(f"fp16 can't be had with {wish}.", why, "Try: --precision bf16, or --parallel ddp")
    return replace(world, shards=shards)


def sharings(world: World) -> list[int]:
    """The numbers of processes that can hold one copy of the model between them: one, those of a machine, and all."""
    machine = [world.neighbours] if world.size % world.neighbours == 0 else []
    return [1] if world.precision.name == "fp16" else sorted({1, *machine, world.size})


def _shards(config: Config, dataset: Dataset, world: World) -> int:
    """The fewest that have room for the model between them, and some to spare; all of them if none have."""
    choices = sharings(world)
    for shards in choices[:-1]:
        shared = replace(world, shards=shards)
        if memory(resolve(config, dataset, shared), shared).needed <= SAFE * free_memory(shared):
            return shards
    return choices[-1]


def resolve(config: Config, dataset: Dataset, world: World) -> Config:
    """Replace each 0 ("work it out") by its value for this dataset and device.

    A step has the tokens that it would have in a world of one such device, which many processes share.
    """
    model, optim, train = _for_ids(config.model, dataset), config.optim, config.train
    recompute = recomputing(train.recompute, model, optim.name, world)
    windows, micro_batch = _batch(config.model_copy(update={"model": model}), world)
    steps = -(-train.tokens // (windows * model.context))
    eval_every = train.eval_every or max(1, -(-steps // (10 if steps >= 100 else 3)))
    resolved = {
        "tokens_per_step": windows * model.context,
        "micro_batch": micro_batch,
        "eval_every": eval_every,
        "eval_tokens": train.eval_tokens or max(LEAST_VALIDATED, train.tokens // 50),
        "save_every": train.save_every or eval_every,
        "precision": world.precision.name,
        "compile": _compile(train.compile, steps * windows * model.context * flops_per_token(model), world),
        "recompute": recompute,
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


def _for_ids(model: ModelConfig, dataset: Dataset) -> ModelConfig:
    """The shape with a row for each token id; raises BadUsage when it has fewer."""
    rows = model.vocab_size or -(-dataset.info.vocab_size // 128) * 128
    if rows < dataset.info.vocab_size:
        why = f"The dataset {dataset.name} has {dataset.info.vocab_size} token ids."
        raise BadUsage(f"model.vocab_size={rows} is too small.", why, "Leave it out: it follows the dataset.")
    return model.model_copy(update={"vocab_size": rows})


def _batch(config: Config, world: World) -> tuple[int, int]:
    """Windows of a step, and of a process's micro-batch."""
    model, name, train = config.model, config.optim.name, config.train

    def most(where: World) -> int:
        return most_at_once(model, name, recomputing(train.recompute, model, name, where), where)

    alone = replace(world, rank=0, size=1, neighbours=1, shards=1)
    windows, micro_batch = windows_of(train, model, name, most(alone))
    return windows, micro_batch if world.size == 1 else micro_batch_of(windows, train.micro_batch, most(world), world.size)


def plan(config: Config, dataset: Dataset, world: World, rate: float) -> Plan:
    """The receipt of a resolved config, on devices with a matrix rate of `rate` FLOP/s each.

    Raises BadData for a dataset without a single window.
    """
    model, train = config.model, config.train
    available = len(Windows(dataset.train, model.context))
    if not available:
        why = f"It has {dataset.info.total('train', 'tokens'):,} tokens; a window needs {model.context + 1:,}."
        raise BadData(f"The dataset {dataset.name} is too small.", why, "Prepare more text, or try: --set model.context=256")
    steps = -(-train.tokens // train.tokens_per_step)
    tokens = steps * train.tokens_per_step
    epochs = tokens / (available * model.context)
    saved = checkpoint_bytes(model, config.optim.name) + len(dataset.tokenizer.description)
    return Plan(
        parameters=count(model),
        embedding_parameters=embeddings(model),
        steps=steps,
        tokens_per_step=train.tokens_per_step,
        tokens=tokens,
        micro_batch=train.micro_batch,
        processes=world.size,
        parallel=world.parallel,
        sent=traffic(config, world).total,
        epochs=epochs,
        flops=tokens * flops_per_token(model),
        duration=duration(config, world, steps, pace(config, world, rate)),
        memory=memory(config, world),
        memory_free=free_memory(world),
        checkpoint=saved,
        disk=checkpoints_at_most(train, steps) * saved,
        loss=expect(model, tokens, epochs, dataset) if config.optim.name == "muon" and not train.init_from else None,
    )


def _compile(wish: Switch, flops: float, world: World) -> Literal["on", "off"]:
    """Compiling pays where the run is long; it is switched off at once where there is no compiler."""
    if wish != "auto":
        return wish
    return "on" if world.device.type != "mps" and flops > WORTH_COMPILING.get(world.device.type, 0) else "off"

"""What a run is about to do, worked out before its first step: sizes, steps, memory, time."""

from dataclasses import dataclass
from typing import Literal

from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config, Switch, TrainConfig
from llamactl.corpus.batches import Windows
from llamactl.durable import free_bytes
from llamactl.errors import BadData, BadUsage, NoRoom
from llamactl.model.llama import count, embeddings
from llamactl.training.optimizers import CONTINUED_RATE, EMBEDDING_SCALE, EMBEDDING_SCALE_TIED, peak_rate
from llamactl.training.sizing import (
    checkpoint_bytes,
    chunk_bytes,
    flops_per_token,
    free_memory,
    most_at_once,
    recomputing,
    state_bytes,
    update_flops,
    window_bytes,
    windows_of,
)  # fmt: skip
from llamactl.training.world import World

# FLOPs of a run below which compiling takes longer than it saves: about a minute of work on each.
WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e16}

LEAST_VALIDATED = 4_096  # tokens: the loss of fewer says nothing

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
    checkpoint: int
    disk: int

    @property
    def tokens_per_parameter(self) -> float:
        """About 20 is where more tokens and more parameters pay alike (Hoffmann et al. 2022, arXiv 2203.15556)."""
        return self.tokens / self.parameters

    @property
    def smoke_test(self) -> bool:
        """Whether the budget is too small to learn much."""
        return self.tokens_per_parameter < SMOKE_TEST


def resolve(config: Config, dataset: Dataset, world: World) -> Config:
    """Replace each 0 ("work it out") by its value for this dataset and device."""
    model, optim, train = config.model, config.optim, config.train
    padded = -(-dataset.info.vocab_size // 128) * 128
    model = model.model_copy(update={"vocab_size": model.vocab_size or padded})
    if model.vocab_size < dataset.info.vocab_size:
        why = f"The dataset {dataset.name} has {dataset.info.vocab_size} token ids."
        raise BadUsage(f"model.vocab_size={model.vocab_size} is too small.", why, "Leave it out: it follows the dataset.")
    recompute = recomputing(train.recompute, model, optim.name, world)
    windows, micro_batch = windows_of(train, model, optim.name, most_at_once(model, optim.name, recompute, world))
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


def plan(config: Config, dataset: Dataset, world: World, rate: float) -> Plan:
    """The receipt of a resolved config, on a device with a matrix rate of `rate` FLOP/s; raises BadData, NoRoom."""
    model, train = config.model, config.train
    available = len(Windows(dataset.train, model.context))
    if not available:
        why = f"It has {dataset.info.total('train', 'tokens'):,} tokens; a window needs {model.context + 1:,}."
        raise BadData(f"The dataset {dataset.name} is too small.", why, "Prepare more text, or try: --set model.context=256")
    steps = -(-train.tokens // train.tokens_per_step)
    tokens = steps * train.tokens_per_step
    saved = checkpoint_bytes(model, config.optim.name) + len(dataset.tokenizer.description)
    made = Plan(
        parameters=count(model),
        embedding_parameters=embeddings(model),
        steps=steps,
        tokens_per_step=train.tokens_per_step,
        tokens=tokens,
        micro_batch=train.micro_batch,
        epochs=tokens / (available * model.context),
        flops=tokens * flops_per_token(model),
        seconds=(tokens * flops_per_token(model) + steps * update_flops(model, config.optim.name))
        / (usual_efficiency(world) * rate),
        memory=state_bytes(model, config.optim.name)
        + train.micro_batch * window_bytes(model, train.recompute == "on", world)
        + chunk_bytes(model, world),
        memory_free=free_memory(world.device),
        checkpoint=saved,
        disk=checkpoints_at_most(train, steps) * saved,
    )
    if made.memory > made.memory_free:
        why = f"It needs about {made.memory / 1e9:.1f} GB; {made.memory_free / 1e9:.1f} GB are free."
        fix = "Try: --set train.micro_batch=1" if train.micro_batch > 1 else "Try a smaller --preset."
        raise NoRoom(f"{config.preset} does not fit into the memory of {world.device}.", why, fix)
    return made


def checkpoints_at_most(train: TrainConfig, steps: int) -> int:
    """Checkpoints that are on the disk at once: those that are kept, the best, and the one that is being written."""
    made = -(-steps // train.save_every)
    kept = steps // train.keep_every if train.keep_every else 0
    return min(made, train.keep + 1 + kept) + 1


def check_disk(plan: Plan, config: Config, run: RunDir) -> None:
    """Whether the checkpoints to come fit onto the disk; raises NoRoom."""
    there = sum(file.stat().st_size for file in run.checkpoints.glob("*/*"))
    free = free_bytes(run.path)
    if plan.disk > free + there:
        why = f"They take up to {plan.disk / 1e9:.3g} GB, of {plan.checkpoint / 1e9:.3g} GB each; {free / 1e9:.3g} GB are free."
        fix = "Keep fewer with --set train.keep=1, take a smaller --preset, or set LLAMACTL_HOME to another disk."
        raise NoRoom(f"The checkpoints of {config.preset} do not fit into {run.path}.", why, fix)


def usual_efficiency(world: World) -> float:
    """The share of a device's matrix rate that a step reaches, as measured on two cores (docs/benchmarks.md)."""
    return 0.75 if world.precision.dtype.itemsize == 4 else 0.5


def _compile(wish: Switch, flops: float, world: World) -> Literal["on", "off"]:
    """Compiling pays where the run is long; it is switched off at once where there is no compiler."""
    if wish != "auto":
        return wish
    return "on" if world.device.type != "mps" and flops > WORTH_COMPILING.get(world.device.type, 0) else "off"

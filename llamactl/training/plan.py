"""What a run is about to do, worked out before its first step: sizes, steps, memory, time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llamactl.artifacts import Dataset, RunDir
from llamactl.config import Config, Switch, TrainConfig, build, preset
from llamactl.corpus.batches import Windows
from llamactl.durable import free_bytes
from llamactl.errors import BadData, BadUsage, NoRoom
from llamactl.model.llama import count, embeddings
from llamactl.presets import PRESETS
from llamactl.training.expectation import Expectation, expect
from llamactl.training.forecast import Duration, Memory, Pace, duration, memory, pace
from llamactl.training.optimizers import CONTINUED_RATE, EMBEDDING_SCALE, EMBEDDING_SCALE_TIED, peak_rate
from llamactl.training.sizing import (
    checkpoint_bytes,
    flops_per_token,
    free_memory,
    most_at_once,
    recomputing,
    windows_of,
)  # fmt: skip
from llamactl.training.world import World

# FLOPs of a run below which compiling takes longer than it saves: about a minute of work on each.
WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e16}

LEAST_VALIDATED = 4_096  # tokens: the loss of fewer says nothing

SMOKE_TEST = 0.5  # tokens per parameter below which a run only shows that everything works


@dataclass(frozen=True)
class Plan:
    """The receipt: all that can be known of a run before it starts. `loss` is None where nothing like it was measured."""

    parameters: int
    embedding_parameters: int
    steps: int
    tokens_per_step: int
    tokens: int
    micro_batch: int
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
    """The receipt of a resolved config, on a device with a matrix rate of `rate` FLOP/s.

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
        epochs=epochs,
        flops=tokens * flops_per_token(model),
        duration=duration(config, world, steps, pace(config, world, rate)),
        memory=memory(config, world),
        memory_free=free_memory(world),
        checkpoint=saved,
        disk=checkpoints_at_most(train, steps) * saved,
        loss=expect(model, tokens, epochs, dataset) if config.optim.name == "muon" and not train.init_from else None,
    )


def budgets(config: Config, dataset: Dataset, world: World, rate: float, measured: Pace | None = None) -> list[Plan]:
    """Plans of a config that is not resolved: for its own budget, ten times that, and 20 tokens a parameter.

    `measured` is the pace of the first; the others are as much faster or slower than estimated as that.
    """
    own = resolve(config, dataset, world)
    faster = pace(own, world, rate).step / measured.step if measured else 1.0
    enough = 20 * count(own.model)
    plans = []
    for tokens in sorted({own.train.tokens, min(10 * own.train.tokens, max(enough, own.train.tokens)), enough}):
        resolved = resolve(_with(config, tokens=tokens), dataset, world)
        at = pace(resolved, world, faster * rate)
        made = plan(resolved, dataset, world, faster * rate)
        plans.append(replace(made, duration=duration(resolved, world, made.steps, Pace(at.step, (measured or at).start))))
    return plans


def check_memory(plan: Plan, config: Config, world: World) -> None:
    """Whether it fits; raises NoRoom with settings that would."""
    if plan.memory.needed <= plan.memory_free:
        return
    why = f"It needs about {plan.memory.needed / 1e9:.1f} GB; {plan.memory_free / 1e9:.1f} GB are free."
    ways = [way for way in _smaller(config) if _fits(way[1], world)]
    fix = f"This would fit: {ways[0][0]}" if ways else "Train on a device with more memory."
    raise NoRoom(f"{config.preset} does not fit into the memory of {world.device}.", why, fix)


def _smaller(config: Config) -> Iterator[tuple[str, Config]]:
    """Ways to need less memory, the gentlest first: fewer windows at once, activations again, a smaller model."""
    micro_batch = config.train.micro_batch
    while micro_batch > 1:
        micro_batch = -(-micro_batch // 2)
        yield f"--set train.micro_batch={micro_batch}", _with(config, micro_batch=micro_batch)
    again = _with(config, micro_batch=1, recompute="on")
    yield "--set train.micro_batch=1 --set train.recompute=on", again
    vocab = {"model": {"vocab_size": config.model.vocab_size}}
    for name in sorted(PRESETS, key=lambda name: -count(build([preset(name), vocab]).model)):
        model = build([preset(name), vocab]).model
        if count(model) < count(config.model):
            yield f"--preset {name}", again.model_copy(update={"model": model, "preset": name})


def _fits(config: Config, world: World) -> bool:
    return memory(config, world).needed <= free_memory(world)


def _with(config: Config, **train: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


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


def _compile(wish: Switch, flops: float, world: World) -> Literal["on", "off"]:
    """Compiling pays where the run is long; it is switched off at once where there is no compiler."""
    if wish != "auto":
        return wish
    return "on" if world.device.type != "mps" and flops > WORTH_COMPILING.get(world.device.type, 0) else "off"

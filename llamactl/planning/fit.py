"""Check that a planned run fits into memory, disk and a sensible budget; errors name settings that would fit."""

from collections.abc import Iterator
from dataclasses import replace

from llamactl.config.parameters import num_params
from llamactl.config.presets import PRESETS
from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.distributed.context import World
from llamactl.errors import OutOfSpace
from llamactl.planning.alternatives import strategy_name
from llamactl.planning.budget import check_budget
from llamactl.planning.memory import free_memory
from llamactl.planning.memory_estimate import estimate_memory
from llamactl.planning.plan import Plan
from llamactl.planning.resolve import possible_shards
from llamactl.runs.run_dir import RunDir
from llamactl.storage.disk import free_bytes
from llamactl.storage.records import folder_bytes

MOST_GPUS = 1024  # the largest number that an error proposes


def check_memory(plan: Plan, config: Config, world: World) -> None:
    """Check that a plan fits into memory; raises OutOfSpace with what would: more shards, other settings, a smaller model."""
    if plan.memory.required_bytes <= plan.memory_free:
        return
    distributed = world.size > 1
    # A run that starts from a checkpoint has its shape, and the preset says nothing about it.
    name = config.train.init_from or config.preset
    message = f"{name} does not fit into the memory of {world.device}"
    message += f", {world.size} processes, {strategy_name(world)}." if distributed else "."
    needed, free = plan.memory.required_bytes / 1e9, plan.memory_free / 1e9
    why = f"{'Each' if distributed else 'It'} needs about {needed:.1f} GB; {free:.1f} GB are free."
    # First what trains the same model on the same devices; another model or more GPUs only if nothing else fits.
    same_model = [*_more_shards(config, world), *_less_memory(config, world)]
    fixes = [option for option, config, world in same_model if _fits(config, world)][:1]
    smaller = [] if config.train.init_from else _smaller_models(config)
    fixes = fixes or [option for option, config in smaller if _fits(config, world)][:1] + _more_gpus(config, world)
    fix = f"This would fit: {', or '.join(fixes)}" if fixes else "Train on a device with more memory."
    raise OutOfSpace(message, why, fix)


def _more_shards(config: Config, world: World) -> Iterator[tuple[str, Config, World]]:
    """Yield options that shard a copy of the model over more of the same ranks."""
    for shards in possible_shards(world):
        if shards > world.shards:
            sharded = replace(world, shards=shards)
            yield f"--parallel {strategy_name(sharded)}", config, sharded


def _less_memory(config: Config, world: World) -> Iterator[tuple[str, Config, World]]:
    """Yield settings that need less memory, the fastest ones first: smaller micro-batches, then recomputed activations."""
    micro_batch = config.train.micro_batch
    while micro_batch > 1:
        micro_batch = -(-micro_batch // 2)
        yield f"--set train.micro_batch={micro_batch}", config.with_train(micro_batch=micro_batch), world
    yield "--set train.micro_batch=1 --set train.activation_checkpointing=on", _least_memory(config), world


def _smaller_models(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield the presets with fewer parameters, the largest first."""
    # With the vocabulary of the run's dataset, on which the sizes depend.
    vocab = {"model": {"vocab_size": config.model.vocab_size}}
    for name in sorted(PRESETS, key=lambda name: -num_params(build_config([preset_settings(name), vocab]).model)):
        model = build_config([preset_settings(name), vocab]).model
        if num_params(model) < num_params(config.model):
            yield f"--preset {name}", _least_memory(config).model_copy(update={"model": model, "preset": name})


def _more_gpus(config: Config, world: World) -> list[str]:
    """Return the smallest number of GPUs, doubled until it suffices, that fits the model with FSDP; none for a CPU."""
    size = 2 * world.size
    while world.device.type == "cuda" and size <= MOST_GPUS:
        # Machines of eight GPUs, as is usual.
        larger = replace(world, size=size, local_world_size=min(size, 8), shards=size)
        # fp16 can't be sharded: then more GPUs do not help.
        if len(possible_shards(larger)) > 1 and _fits(_least_memory(config), larger):
            return [f"{size} such GPUs with --parallel fsdp"]
        size *= 2
    return []


def _least_memory(config: Config) -> Config:
    """Return a config with the settings that need the least memory."""
    return config.with_train(micro_batch=1, activation_checkpointing="on")


def _fits(config: Config, world: World) -> bool:
    """Check whether a config fits into free memory."""
    return estimate_memory(config, world).required_bytes <= free_memory(world)


def check_fit(plan: Plan, config: Config, run: RunDir, anyway: bool) -> None:
    """Check the disk, and the budget unless it is wanted `anyway`; raises OutOfSpace or UsageError."""
    if not anyway:
        check_budget(plan)
    check_disk(plan, config, run)


def check_disk(plan: Plan, config: Config, run: RunDir) -> None:
    """Check that the checkpoints of a plan fit onto the disk; raises OutOfSpace."""
    # A resumed run replaces its checkpoints, so theirs is space to use; damaged ones are kept.
    replaced = folder_bytes(run.checkpoints) - sum(map(folder_bytes, run.set_aside()))
    free = free_bytes(run.path)
    if plan.disk > free + replaced:
        why = f"They take up to {plan.disk / 1e9:.3g} GB, of {plan.checkpoint / 1e9:.3g} GB each; {free / 1e9:.3g} GB are free."
        smaller = "" if config.train.init_from else " take a smaller --preset,"
        fix = f"Keep fewer with --set train.keep_last=1,{smaller} or set LLAMACTL_HOME to another disk."
        raise OutOfSpace(f"The checkpoints of {config.train.init_from or config.preset} do not fit into {run.path}.", why, fix)

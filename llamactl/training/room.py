"""Whether a planned run fits: into the memory, and its checkpoints onto the disk; what does not is said with what would."""

from collections.abc import Iterator
from dataclasses import replace

from llamactl.artifacts import RunDir
from llamactl.config import Config, build, preset
from llamactl.durable import free_bytes
from llamactl.errors import NoRoom
from llamactl.model.llama import count
from llamactl.presets import PRESETS
from llamactl.training.choices import way_name
from llamactl.training.forecast import memory
from llamactl.training.plan import Plan, sharings
from llamactl.training.sizing import free_memory
from llamactl.training.world import World

MOST_GPUS = 1024  # that are thought of


def check_memory(plan: Plan, config: Config, world: World) -> None:
    """Whether it fits; raises NoRoom with what would: another way of sharing, other settings, a smaller model, more GPUs."""
    if plan.memory.needed <= plan.memory_free:
        return
    many = world.size > 1
    what = f"{config.preset} does not fit into the memory of {world.device}"
    what += f", {world.size} processes, {way_name(world)}." if many else "."
    why = f"{'Each' if many else 'It'} needs about {plan.memory.needed / 1e9:.1f} GB; {plan.memory_free / 1e9:.1f} GB are free."
    gentle = [name for name, config, world in [*_shared(config, world), *_tighter(config, world)] if _fits(config, world)]
    others = [name for name, config in _smaller(config) if _fits(config, world)][:1] + _more(config, world)
    fixes = gentle[:1] or others
    raise NoRoom(what, why, f"This would fit: {', or '.join(fixes)}" if fixes else "Train on a device with more memory.")


def _shared(config: Config, world: World) -> Iterator[tuple[str, Config, World]]:
    """The same processes with more of them to a copy of the model."""
    for shards in sharings(world):
        if shards > world.shards:
            shared = replace(world, shards=shards)
            yield f"--parallel {way_name(shared)}", config, shared


def _tighter(config: Config, world: World) -> Iterator[tuple[str, Config, World]]:
    """Settings that need less memory, the gentlest first: fewer windows at once, activations again."""
    micro_batch = config.train.micro_batch
    while micro_batch > 1:
        micro_batch = -(-micro_batch // 2)
        yield f"--set train.micro_batch={micro_batch}", _with(config, micro_batch=micro_batch), world
    yield "--set train.micro_batch=1 --set train.recompute=on", _tightest(config), world


def _smaller(config: Config) -> Iterator[tuple[str, Config]]:
    """Smaller presets, the largest first."""
    vocab = {"model": {"vocab_size": config.model.vocab_size}}
    for name in sorted(PRESETS, key=lambda name: -count(build([preset(name), vocab]).model)):
        model = build([preset(name), vocab]).model
        if count(model) < count(config.model):
            yield f"--preset {name}", _tightest(config).model_copy(update={"model": model, "preset": name})


def _more(config: Config, world: World) -> list[str]:
    """The fewest GPUs, twice as many or four times and so on, that have room for the model between them; none for a CPU."""
    size = 2 * world.size
    while world.device.type == "cuda" and size <= MOST_GPUS:
        larger = replace(world, size=size, neighbours=min(size, 8), shards=size)
        if len(sharings(larger)) > 1 and _fits(_tightest(config), larger):
            return [f"{size} such GPUs with --parallel fsdp"]
        size *= 2
    return []


def _tightest(config: Config) -> Config:
    return _with(config, micro_batch=1, recompute="on")


def _fits(config: Config, world: World) -> bool:
    return memory(config, world).needed <= free_memory(world)


def _with(config: Config, **train: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def check_disk(plan: Plan, config: Config, run: RunDir) -> None:
    """Whether the checkpoints to come fit onto the disk; raises NoRoom."""
    there = sum(file.stat().st_size for file in run.checkpoints.glob("*/*"))
    free = free_bytes(run.path)
    if plan.disk > free + there:
        why = f"They take up to {plan.disk / 1e9:.3g} GB, of {plan.checkpoint / 1e9:.3g} GB each; {free / 1e9:.3g} GB are free."
        fix = "Keep fewer with --set train.keep=1, take a smaller --preset, or set LLAMACTL_HOME to another disk."
        raise NoRoom(f"The checkpoints of {config.preset} do not fit into {run.path}.", why, fix)

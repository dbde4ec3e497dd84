"""The receipt that people get before a run: what is about to happen, and what to expect of it."""

from rich.text import Text

from llamactl.artifacts import Dataset, RunDir
from llamactl.cli.screen import progress, show_table
from llamactl.config import Config
from llamactl.quantities import show_bytes, show_count, show_time
from llamactl.training.choices import way_name
from llamactl.training.forecast import Memory
from llamactl.training.plan import Plan, plan
from llamactl.training.room import check_memory
from llamactl.training.sizing import own_windows
from llamactl.training.traffic import link
from llamactl.training.world import World

ASSUMED = ", if half of the device's rate is reached, which was never measured here"
ASSUMED_OF_MANY = ", if half of each device's rate is reached and {link}/s flow between them, which was never measured here"


def receipt(config: Config, dataset: Dataset, world: World, rate: float, folder: RunDir) -> Plan:
    """Say what a resolved config is going to do on devices of `rate` FLOP/s each; raises NoRoom when it does not fit there."""
    planned = plan(config, dataset, world, rate)
    show_plan(planned, config, dataset, world, folder)
    check_memory(planned, config, world)
    return planned


def show_plan(plan: Plan, config: Config, dataset: Dataset, world: World, folder: RunDir) -> None:
    """The receipt, and what to think of where it looks odd."""
    model = config.model
    inside = plan.parameters - plan.embedding_parameters
    shape = f"{model.layers} layers, width {model.width}, {model.heads} heads, {model.kv_heads} key/value heads"
    head = "the head is the embedding" if model.tied else "the head is its own"
    show_table(
        f"{config.preset} on {dataset.name} into {folder.path}",
        {
            "model": f"{plan.parameters:,} parameters, {inside:,} without embeddings "
            f"({shape}, {model.vocab_size:,} ids; {head})",
            **_origin(config),
            "budget": f"{plan.steps:,} steps x {plan.tokens_per_step:,} tokens = {plan.tokens:,} tokens, "
            f"{plan.epochs:.2f} epochs, {_per_parameter(plan)}, {plan.flops:.2g} FLOPs",
            "batch": f"{_windows(plan, config)}, {plan.micro_batch} at once"
            + (", activations recomputed to save memory" if config.train.recompute == "on" else ""),
            "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:.2g}, {config.schedule.name}",
            "device": f"{world.device}, {world.precision.name} products ({world.precision.reason}), fp32 weights"
            + (", compiled" if config.train.compile == "on" else "")
            + _processes(world),
            "disk": f"up to {show_bytes(plan.disk)} for checkpoints of {show_bytes(plan.checkpoint)}",
            "memory": f"about {show_bytes(plan.memory.total)}{' a process' if plan.processes > 1 else ''}; "
            f"{show_bytes(plan.memory_free)} free",
            "time": f"about {show_time(plan.duration.total)}{_assumed(world)}",
            **_loss(plan),
        },
    )
    _warn(plan, config)


def _windows(plan: Plan, config: Config) -> str:
    """The windows of a step, and how they are dealt out."""
    windows, context = plan.tokens_per_step // config.model.context, config.model.context
    most, least = own_windows(windows, plan.processes), windows // plan.processes
    each = f", {most} a process" if most == least else f", {most} or {least} a process"
    return f"{windows:,} windows of {context:,} tokens" + (each if plan.processes > 1 else "")


def _processes(world: World) -> str:
    """How many share the work, and how."""
    if world.size == 1:
        return ""
    machines = world.size // world.neighbours
    return f"; {world.size:,} processes, {way_name(world)}" + (f", on {machines:,} machines" if machines > 1 else "")


def _assumed(world: World) -> str:
    """What the time stands on that nobody measured."""
    if world.device.type == "cpu":
        return ""
    return ASSUMED if world.size == 1 else ASSUMED_OF_MANY.format(link=show_bytes(link(world)))


def _loss(plan: Plan) -> dict[str, str]:
    if plan.loss is None:
        return {}
    expected = plan.loss
    return {
        "loss": f"about {expected.loss:.2f} nats per token on held-out text ({expected.low:.2f} to {expected.high:.2f}), "
        f"{expected.bits_per_byte:.2f} bits per byte; by a law fitted to 12 runs and how well this text compresses"
    }


def _warn(plan: Plan, config: Config) -> None:
    if plan.smoke_test and not config.train.init_from:
        enough = show_count(20 * plan.parameters)
        warning = f" This is a smoke test: {_per_parameter(plan)} teach little. About 20 make a good model: --tokens {enough}"
        progress.print(Text(warning, style="yellow"))
    if plan.tokens_per_step < plan.processes * config.model.context:
        idle = plan.processes - plan.tokens_per_step // config.model.context
        warning = f" {idle:,} of {plan.processes:,} processes have no window in a step: take fewer, or larger steps."
        progress.print(Text(warning, style="yellow"))
    if plan.epochs > 4:
        progress.print(Text(f" The data will be seen {plan.epochs:.1f} times; above 4 it teaches little more.", style="yellow"))


def _per_parameter(plan: Plan) -> str:
    return f"{plan.tokens_per_parameter:.2g} tokens per parameter"


def _origin(config: Config) -> dict[str, str]:
    """Where the weights come from and how positions are scaled, as far as there is anything to say."""
    model, rows = config.model, dict[str, str]()
    if config.train.init_from:
        rows["weights"] = f"from {config.train.init_from}, with a fresh optimizer and schedule"
    if model.rope_scaling > 1:
        spanned = f"{model.context:,} of them span what {model.context / model.rope_scaling:,.0f} do unscaled"
        rows["positions"] = f"linear:{model.rope_scaling:g}, so that {spanned}"
    return rows


PARTS = {
    "weights": "weights, fp32",
    "gradients": "gradients, fp32",
    "optimizer": "state of the optimizer, fp32",
    "activations": "activations of a micro-batch",
    "logits": "logits and their gradient",
    "update": "an update, when the activations are gone",
    "saving": "a copy that is being saved",
    "gathered": "weights and gradients, whole for a while",
    "exchange": "buffers of NCCL",
    "program": "Python and PyTorch",
}


def show_memory(memory: Memory) -> None:
    """What the memory is for."""
    rows = {label: show_bytes(size) for name, label in PARTS.items() if (size := getattr(memory, name))}
    show_table("Memory", {**rows, "at most": show_bytes(memory.total)})

"""The summary that is printed before a run: its size, cost and expected loss."""

from rich.text import Text

from llamactl.checkpoint.hf_config import is_edited
from llamactl.cli.ui.console import progress, show_table
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.hardware.device import format_of_products
from llamactl.planning.alternatives import strategy_name
from llamactl.planning.batch_size import windows_per_rank
from llamactl.planning.budget import advise_budget
from llamactl.planning.communication import link_bandwidth
from llamactl.planning.fit import check_memory
from llamactl.planning.memory_estimate import MemoryEstimate
from llamactl.planning.plan import Plan, make_plan
from llamactl.runs.run_dir import RunDir
from llamactl.units import show_bytes, show_time

# The estimated time is fitted to runs of this project where there are any; on a GPU it is an assumption, and must say so.
ASSUMED = ", assuming half of the device's FLOP/s; not measured"
ASSUMED_OF_MANY = ", assuming half of each device's FLOP/s and {link}/s between devices; not measured"
TIMED = ", as a few of its steps were timed"


def show_plan_summary(
    config: Config, dataset: Dataset, world: World, rate: float, folder: RunDir, measured: bool = False, done: int = 0
) -> Plan:
    """Print the plan of a resolved config on devices of `rate` FLOP/s each, that is `measured` in its steps or the device's.

    The time is that of the steps after those that are `done`. Raises OutOfSpace when it does not fit.
    """
    planned = make_plan(config, dataset, world, rate, measured)
    # Printed before the check, so that a refusal has its figures above it.
    show_plan_lines(planned, config, dataset, world, folder, measured, done)
    check_memory(planned, config, world)
    return planned


def show_plan_lines(
    plan: Plan, config: Config, dataset: Dataset, world: World, folder: RunDir, measured: bool, done: int
) -> None:
    """Print a plan, and warnings where it looks wrong."""
    model = config.model
    inside = plan.parameters - plan.embedding_parameters
    shape = f"{model.n_layers} layers, width {model.dim}, {model.n_heads} heads, {model.n_kv_heads} key/value heads"
    head = "tied embeddings" if model.tie_embeddings else "untied embeddings"
    show_table(
        f"{config.preset} on {dataset.name} into {folder.path}",
        {
            "model": f"{plan.parameters:,} parameters, {inside:,} without embeddings "
            f"({shape}, vocabulary {model.vocab_size:,}, {head})",
            **_origin(config),
            "budget": f"{plan.steps:,} steps x {plan.tokens_per_step:,} tokens = {plan.tokens:,} tokens, "
            f"{plan.epochs:.2f} epochs, {plan.tokens_per_parameter:.2g} tokens per parameter, {plan.flops:.2g} FLOPs"
            + _early_end(config.train.patience),
            "batch": f"{_sequences(plan, config)}, micro-batch {plan.micro_batch}"
            + (", documents do not see one another" if config.data.separate_documents else "")
            + (", activations recomputed to save memory" if config.train.activation_checkpointing == "on" else ""),
            "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:.2g}, {config.schedule.name}",
            "device": f"{world.device}, {_precision_name(world)} ({world.precision.reason}), fp32 weights"
            + {"off": "", "graphs": ", compiled, CUDA graphs"}.get(config.train.compile, ", compiled")
            + _processes(world),
            "disk": f"up to {show_bytes(plan.disk)} for checkpoints of {show_bytes(plan.checkpoint)}",
            "memory": f"about {show_bytes(plan.memory.total)}{' per process' if plan.processes > 1 else ''}; "
            f"{show_bytes(plan.memory_free)} free",
            "time": _time_left(plan, done, TIMED if measured else _assumed(world)),
            **_loss(plan),
        },
    )
    _warn(plan, config)


def _early_end(patience: int) -> str:
    """Describe when a run ends before its budget; empty without patience."""
    return f"; ends early after {patience} validations without a lower loss" if patience else ""


def _time_left(plan: Plan, done: int, assumption: str) -> str:
    """Describe the time of the steps that are not `done` yet."""
    if done >= plan.steps:
        return "none: the run is finished"
    left = f" for the {plan.steps - done:,} steps that are left" if done else ""
    return f"about {show_time(plan.duration.seconds_left(done / plan.steps))}{left}{assumption}"


def _precision_name(world: World) -> str:
    """Name the precision of the computation; only fp32 is not mixed, as the weights always are fp32."""
    if world.precision.name == "fp32":
        return "fp32" if world.memory_override else format_of_products(world.device, world.precision.dtype)
    return f"{world.precision.name} mixed precision"


def _sequences(plan: Plan, config: Config) -> str:
    """Describe the sequences of a step, and how many of them each rank has."""
    sequences, context = plan.tokens_per_step // config.model.context, config.model.context
    # Ranks with fewer sequences than others compute on one of weight zero, so that all join every collective call.
    largest, smallest = windows_per_rank(sequences, plan.processes), sequences // plan.processes
    per_rank = f", {largest} per process" if largest == smallest else f", {largest} or {smallest} per process"
    return f"{sequences:,} sequences of {context:,} tokens" + (per_rank if plan.processes > 1 else "")


def _processes(world: World) -> str:
    """Describe the number of processes and machines and the parallel strategy; empty for one process."""
    if world.size == 1:
        return ""
    machines = world.size // world.local_world_size
    return f"; {world.size:,} processes, {strategy_name(world)}" + (f", on {machines:,} machines" if machines > 1 else "")


def _assumed(world: World) -> str:
    """Describe what the estimated time assumes without measurement; empty on a CPU, whose FLOP/s are measured."""
    if world.device.type == "cpu":
        return ""
    return ASSUMED if world.size == 1 else ASSUMED_OF_MANY.format(link=show_bytes(link_bandwidth(world)))


def _loss(plan: Plan) -> dict[str, str]:
    """Describe the expected loss; empty where there is no prediction."""
    if plan.loss is None:
        return {}
    expected = plan.loss
    return {
        "loss": f"about {expected.loss:.2f} nats per token on held-out text ({expected.low:.2f} to {expected.high:.2f}), "
        f"{expected.bits_per_byte:.2f} bits per byte; by a scaling law fitted to 12 runs and how well this text compresses"
    }


def _warn(plan: Plan, config: Config) -> None:
    """Print warnings: a budget that teaches little, a model that other programs can't load, ranks without work."""
    if is_edited(config.model):
        warning = " No longer a plain Llama: its code was changed, and Hugging Face and GGUF will not load it."
        progress.print(Text(warning, style="yellow"))
    if advice := advise_budget(plan, config.train):
        progress.print(Text(f" {advice}", style="yellow"))
    if plan.tokens_per_step < plan.processes * config.model.context:
        idle = plan.processes - plan.tokens_per_step // config.model.context
        warning = f" {idle:,} of {plan.processes:,} processes have no sequence in a step: use fewer processes, or larger steps."
        progress.print(Text(warning, style="yellow"))


def _origin(config: Config) -> dict[str, str]:
    """Describe the checkpoints that a run starts or learns from and how positions are scaled; empty for a fresh run."""
    model, rows = config.model, dict[str, str]()
    if config.train.init_from:
        rows["weights"] = f"from {config.train.init_from}, with a fresh optimizer and schedule"
    if config.train.teachers:
        share = f"{config.train.teacher_share:.0%} of what is learned is their mean prediction"
        rows["teachers"] = f"{', '.join(config.train.teachers)}; {share}"
    if model.rope_scaling > 1:
        spanned = f"{model.context:,} of them span what {model.context / model.rope_scaling:,.0f} do unscaled"
        rows["positions"] = f"linear:{model.rope_scaling:g}, so that {spanned}"
    return rows


# In the order of MemoryEstimate; parts of zero bytes are left out.
PARTS = {
    "weights": "weights, fp32",
    "gradients": "gradients, fp32",
    "optimizer": "optimizer state, fp32",
    "activations": "activations of a micro-batch",
    "logits": "logits and their gradient",
    "update": "temporaries of the optimizer step",
    "saving": "a copy of the checkpoint being saved",
    "gathered": "unsharded weights and gradients",
    "exchange": "NCCL buffers",
    "graph": "memory that the CUDA graph keeps",
    "teachers": "teachers and their logits",
    "program": "Python and PyTorch",
}


def show_memory(memory: MemoryEstimate) -> None:
    """Print the parts of the memory estimate."""
    rows = {label: show_bytes(size) for name, label in PARTS.items() if (size := getattr(memory, name))}
    show_table("Memory", {**rows, "total": show_bytes(memory.total)})

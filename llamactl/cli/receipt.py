"""The receipt that people get before a run: what is about to happen, and what to expect of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llamactl.artifacts import Dataset, RunDir
from llamactl.cli.screen import progress, show_columns, show_table
from llamactl.config import Config
from llamactl.errors import BadUsage
from llamactl.quantities import show_bytes, show_count, show_time
from llamactl.training.forecast import Memory
from llamactl.training.plan import Plan, check_memory, plan
from llamactl.training.world import World

ASSUMED = ", if half of the device's rate is reached, which was never measured here"


def receipt(config: Config, dataset: Dataset, world: World, rate: float, folder: RunDir) -> Plan:
    """Say what a resolved config is going to do on a device of `rate` FLOP/s; raises NoRoom when it does not fit there."""
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
            "batch": f"{plan.tokens_per_step // model.context} windows of {model.context:,} tokens, {plan.micro_batch} at once"
            + (", activations recomputed to save memory" if config.train.recompute == "on" else ""),
            "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:.2g}, {config.schedule.name}",
            "device": f"{world.device}, {world.precision.name} products ({world.precision.reason}), fp32 weights"
            + (", compiled" if config.train.compile == "on" else ""),
            "disk": f"up to {show_bytes(plan.disk)} for checkpoints of {show_bytes(plan.checkpoint)}",
            "memory": f"about {show_bytes(plan.memory.total)}; {show_bytes(plan.memory_free)} free",
            "time": f"about {show_time(plan.duration.total)}" + ("" if world.device.type == "cpu" else ASSUMED),
            **_loss(plan),
        },
    )
    _warn(plan, config)


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


@dataclass(frozen=True)
class Tariff:
    """What a machine draws, in watts, and what it costs: money an hour, and a kilowatt-hour."""

    watts: float = 0.0
    per_hour: float = 0.0
    per_kilowatt_hour: float = 0.0

    @classmethod
    def read(cls, price: str, watts: float) -> "Tariff":
        """Read 2.50/h or 0.30/kWh; raises BadUsage for anything else, and for energy of a machine of unknown power."""
        amount, _, unit = price.partition("/")
        try:
            value = float(amount or 0)
        except ValueError:
            value = -1.0
        if value < 0 or (price and unit.lower() not in ("h", "kwh")):
            raise BadUsage(f"--price can't be {price!r}.", "It is money an hour or a kilowatt-hour.", "Example: --price 2.50/h")
        if unit.lower() == "kwh" and not watts:
            raise BadUsage("What does this machine draw?", "Nothing here can measure it.", "Add: --watts 150")
        return cls(watts, *((value, 0.0) if unit.lower() == "h" else (0.0, value)))

    def energy(self, seconds: float) -> str:
        """Kilowatt-hours, where the power is known."""
        return f"{self.watts / 1000 * seconds / 3600:,.2g} kWh" if self.watts else ""

    def cost(self, seconds: float) -> str:
        """Money, where there is a price."""
        hours = seconds / 3600
        money = self.per_hour * hours + self.per_kilowatt_hour * hours * self.watts / 1000
        return f"{money:,.2f}" if self.per_hour or self.per_kilowatt_hour else ""


PARTS = {
    "weights": "weights, fp32",
    "gradients": "gradients, fp32",
    "optimizer": "state of the optimizer, fp32",
    "activations": "activations of a micro-batch",
    "logits": "logits and their gradient",
    "update": "an update, when the activations are gone",
    "saving": "a copy that is being saved",
    "program": "Python and PyTorch",
}


def show_memory(memory: Memory) -> None:
    """What the memory is for."""
    rows = {label: show_bytes(size) for name, label in PARTS.items() if (size := getattr(memory, name))}
    show_table("Memory", {**rows, "at most": show_bytes(memory.total)})


def show_budgets(plans: Sequence[Plan], tariff: Tariff) -> None:
    """The same run for some budgets, on stdout."""
    names = ("tokens", "per parameter", "epochs", "steps", "time", "nats/token", "bits/byte", "energy", "cost")
    rows = [_budget(plan, tariff) for plan in plans]
    used = [place for place in range(len(names)) if any(row[place] for row in rows)]
    show_columns([names[place] for place in used], [[row[place] for place in used] for row in rows])


def _budget(plan: Plan, tariff: Tariff) -> tuple[str, ...]:
    seconds, loss = plan.duration.total, plan.loss
    return (
        show_count(plan.tokens),
        f"{plan.tokens_per_parameter:.2g}",
        f"{plan.epochs:.2f}",
        f"{plan.steps:,}",
        show_time(seconds),
        f"{loss.loss:.2f} ± {(loss.high - loss.low) / 2:.2f}" if loss else "",
        f"{loss.bits_per_byte:.2f}" if loss else "",
        tariff.energy(seconds),
        tariff.cost(seconds),
    )

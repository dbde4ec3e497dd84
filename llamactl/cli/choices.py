"""A plan's tables: ways for processes to share a run, and budgets with what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llamactl.cli.screen import progress, show_columns
from llamactl.errors import BadUsage
from llamactl.quantities import show_bytes, show_count, show_time
from llamactl.training.choices import Way
from llamactl.training.plan import Plan
from llamactl.training.traffic import NETWORK, link, overlaps
from llamactl.training.world import World


@dataclass(frozen=True)
class Tariff:
    """What all that computes draws, in watts, and what it costs: money an hour, and a kilowatt-hour."""

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
        used = self.watts / 1000 * seconds / 3600
        return f"{used:,.0f} kWh" if used >= 10 else f"{used:.2g} kWh" if self.watts else ""

    def cost(self, seconds: float) -> str:
        """Money, where there is a price."""
        hours = seconds / 3600
        money = self.per_hour * hours + self.per_kilowatt_hour * hours * self.watts / 1000
        return f"{money:,.2f}" if self.per_hour or self.per_kilowatt_hour else ""


def show_ways(ways: Sequence[Way], world: World) -> None:
    """How the processes could share the run, on stdout, and what the figures stand on."""
    names = ("way", "memory each", "fits", "sent a step", "seconds a step", "tokens/s", "")
    show_columns(names, [_way(way) for way in ways])
    if overlaps(world):
        network = f", {show_bytes(NETWORK)}/s a GPU between machines" if world.size > world.neighbours else ""
        basis = f"at {show_bytes(link(world))}/s{network}, while it computes, but for Muon's matrices: assumed, never measured"
    else:
        basis = f"at some {show_bytes(link(world))}/s, which is what gloo does on a machine, while it does not compute"
    progress.print(Text(f" What each process sends is sent {basis}.", style="dim"))


def _way(way: Way) -> tuple[str, ...]:
    return (
        way.name,
        show_bytes(way.memory.total),
        "yes" if way.fits else f"no: {show_bytes(way.memory_free)} free",
        show_bytes(way.traffic.total),
        f"{way.step:.3g} s" if way.fits else "",
        f"{way.tokens_per_second:,.0f}" if way.fits else "",
        "chosen" if way.chosen else "",
    )


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

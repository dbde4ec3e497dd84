"""Tables of a plan: the parallel strategies for a run, and budgets with their time and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llamactl.cli.ui.console import progress, show_columns
from llamactl.distributed.context import World
from llamactl.errors import UsageError
from llamactl.planning.alternatives import Strategy
from llamactl.planning.communication import NETWORK, link_bandwidth, overlaps_compute
from llamactl.planning.plan import Plan
from llamactl.units import show_bytes, show_count, show_time


@dataclass(frozen=True)
class Tariff:
    """The power of all devices in watts, and a price per hour or per kilowatt-hour."""

    watts: float = 0.0
    per_hour: float = 0.0
    per_kilowatt_hour: float = 0.0

    @classmethod
    def read(cls, price: str, watts: float) -> "Tariff":
        """Parse 2.50/h or 0.30/kWh; raises UsageError for anything else, and for a price per kWh of an unknown power."""
        amount, _, unit = price.partition("/")
        try:
            value = float(amount or 0)
        except ValueError:
            # Refused below, together with negative and infinite prices.
            value = -1.0
        if not 0 <= value < math.inf or (price and unit.lower() not in ("h", "kwh")):
            raise UsageError(
                f"--price can't be {price!r}.", "It is an amount per hour or per kilowatt-hour.", "Example: --price 2.50/h"
            )
        if unit.lower() == "kwh" and not watts:
            raise UsageError(
                "The power draw is unknown.", "A price per kWh needs it, and it can't be measured here.", "Add: --watts 150"
            )
        return cls(watts, *((value, 0.0) if unit.lower() == "h" else (0.0, value)))

    def energy(self, seconds: float) -> str:
        """Format the energy of a run in kWh; empty where the power is unknown."""
        used = self.watts / 1000 * seconds / 3600
        return f"{used:,.0f} kWh" if used >= 10 else f"{used:.2g} kWh" if self.watts else ""

    def cost(self, seconds: float) -> str:
        """Format the cost of a run, in the currency of the price; empty without a price."""
        hours = seconds / 3600
        money = self.per_hour * hours + self.per_kilowatt_hour * hours * self.watts / 1000
        return f"{money:,.2f}" if self.per_hour or self.per_kilowatt_hour else ""


def show_ways(strategies: Sequence[Strategy], world: World) -> None:
    """Print the parallel strategies for a run, on stdout, and what their figures assume."""
    names = ("strategy", "memory per process", "fits", "sent per step", "time per step", "tokens/s", "")
    show_columns(names, [_strategy(strategy) for strategy in strategies])
    if overlaps_compute(world):
        network = f", {show_bytes(NETWORK)}/s per GPU between machines" if world.size > world.local_world_size else ""
        link = f"{show_bytes(link_bandwidth(world))}/s{network}"
        # Gradients overlap with the backward pass; Muon's matrices are exchanged after it.
        basis = f"{link}, during computation except for Muon's matrices: assumed, not measured"
    else:
        basis = f"about {show_bytes(link_bandwidth(world))}/s, as gloo reaches on one machine, not overlapped with computation"
    progress.print(Text(f" Communication: {basis}.", style="dim"))


def _strategy(strategy: Strategy) -> tuple[str, ...]:
    return (
        strategy.name,
        show_bytes(strategy.memory.total),
        "yes" if strategy.fits else f"no: {show_bytes(strategy.memory_free)} free",
        show_bytes(strategy.traffic.total),
        f"{strategy.step:.3g} s" if strategy.fits else "",
        f"{strategy.tokens_per_second:,.0f}" if strategy.fits else "",
        "chosen" if strategy.chosen else "",
    )


def show_budgets(plans: Sequence[Plan], tariff: Tariff) -> None:
    """Print the same run for several budgets, on stdout."""
    names = ("tokens", "per parameter", "epochs", "steps", "time", "nats/token", "bits/byte", "energy", "cost")
    rows = [_budget(plan, tariff) for plan in plans]
    # Loss, energy and cost are not always known: a column without a value is left out.
    used = [column for column in range(len(names)) if any(row[column] for row in rows)]
    show_columns([names[column] for column in used], [[row[column] for column in used] for row in rows])


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

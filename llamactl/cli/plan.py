"""llamactl plan: the honest receipt, before anything is spent."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli.settings import (
    MACHINE,
    SAID,
    ConfigFile,
    Context,
    DataName,
    DeviceName,
    InitFrom,
    ParallelWay,
    PrecisionName,
    PresetName,
    RopeScaling,
    Settings,
    Tokens,
    continued,
    fresh,
    overrides,
    positions,
)

if TYPE_CHECKING:
    from llamactl.artifacts import Dataset
    from llamactl.cli.choices import Tariff
    from llamactl.config import Config
    from llamactl.training.cards import Card
    from llamactl.training.forecast import Pace
    from llamactl.training.world import World

CARD_HELP = "Plan for a card that is not here, by its data sheet: a4000, rtx4090, a100, h100, ..."
GPUS_HELP = "Plan for so many of them, or without a GPU for so many processes on this CPU."
PROBE_HELP = "Take 20 real steps, or as many as the run has, and go by them."
PRICE_HELP = "What an hour of all of it or a kilowatt-hour costs: 2.50/h or 0.30/kWh."
WATTS_HELP = "Power that all of it draws, in watts."
PROBED = 20  # steps
A_MACHINE = 8  # GPUs at most


def plan(
    data: DataName = "",
    preset: PresetName = "",
    tokens: Tokens = "",
    config: ConfigFile = None,
    settings: Settings = None,
    init_from: InitFrom = "",
    context: Context = None,
    rope_scaling: RopeScaling = "",
    device: DeviceName = "",
    precision: PrecisionName = "",
    card: Annotated[str, typer.Option(help=CARD_HELP, show_default="this machine", rich_help_panel=MACHINE)] = "",
    gpus: Annotated[int, typer.Option(min=1, help=GPUS_HELP, rich_help_panel=MACHINE)] = 1,
    parallel: ParallelWay = "",
    probe: Annotated[bool, typer.Option("--probe", help=PROBE_HELP, rich_help_panel=MACHINE)] = False,
    watts: Annotated[float, typer.Option(min=0, help=WATTS_HELP, show_default="the cards'", rich_help_panel=MACHINE)] = 0.0,
    price: Annotated[str, typer.Option(help=PRICE_HELP, show_default=False, rich_help_panel=SAID)] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON on stdout.", rich_help_panel=SAID)] = False,
) -> None:
    """Say what a run takes, and what to expect of it, before it starts."""
    from llamactl.artifacts import DatasetDir
    from llamactl.cli.choices import Tariff
    from llamactl.errors import BadUsage
    from llamactl.training.cards import find
    from llamactl.training.origin import anchored
    from llamactl.training.plan import arranged

    if card and probe:
        raise BadUsage("--card and --probe exclude each other.", "A card that is not here can't take steps.")
    if gpus > 1 and probe:
        raise BadUsage("--gpus and --probe exclude each other.", "One process can't take the steps of many.")
    typed = [*overrides(tokens, device, precision, data, settings or []), *positions(context, rope_scaling)]
    typed += [{"train": {"parallel": parallel}}] if parallel else []
    chosen = continued(init_from, preset, config, typed) if init_from else fresh(preset, config, typed)
    dataset = DatasetDir.named(chosen.data.name).open()
    named = find(card) if card else None
    tariff = Tariff.read(price, watts or (gpus * named.watts if named else 0.0))
    world, rate = devices(chosen, named, gpus)
    chosen = anchored(chosen, dataset)
    show(chosen, dataset, arranged(chosen, dataset, world), rate, None if json else tariff, probe)


def devices(config: "Config", card: "Card | None", number: int) -> "tuple[World, float]":
    """So many devices that are not arranged yet, and the FLOP/s of each: cards, or what is here, of which a CPU is divided.

    GPUs are thought on machines of 8 or, where that does not come out even, of fewer.
    """
    from dataclasses import replace

    from llamactl.training.meter import peak_rate
    from llamactl.training.world import join

    world = card.asked(config.train.precision) if card else join(config.train)
    divided = world.device.type == "cpu"
    neighbours = number if divided else next(each for each in range(min(A_MACHINE, number), 0, -1) if number % each == 0)
    rate = card.rate if card else peak_rate(world) / (number if divided else 1)
    return replace(world, size=number, neighbours=neighbours), rate


def show(config: "Config", dataset: "Dataset", world: "World", rate: float, tariff: "Tariff | None", probe: bool) -> None:
    """The receipt and other choices, these as tables or, without a tariff, as JSON; raises NoRoom when it does not fit."""
    from dataclasses import asdict
    from json import dumps

    from llamactl.artifacts import RunDir
    from llamactl.cli.choices import show_budgets, show_ways
    from llamactl.cli.receipt import receipt, show_memory
    from llamactl.cli.screen import output
    from llamactl.training.choices import budgets, ways
    from llamactl.training.plan import resolve

    shared = ways(config, dataset, world, rate) if world.size > 1 else []
    if shared and tariff:
        show_ways(shared, world)
    resolved = resolve(config, dataset, world)
    made = receipt(resolved, dataset, world, rate, RunDir.fresh(resolved.preset))
    pace = probed(resolved, dataset, world, min(PROBED, made.steps)) if probe else None
    show_memory(made.memory)
    plans = budgets(config, dataset, world, rate, pace)
    if tariff:
        show_budgets(plans, tariff)
        return
    written = [asdict(each) for each in plans]
    output.print(dumps({"ways": [asdict(way) for way in shared], "budgets": written} if shared else written), markup=False)


def probed(config: "Config", dataset: "Dataset", world: "World", steps: int) -> "Pace":
    """The pace of real steps, said as it was measured."""
    from llamactl.artifacts import RunDir
    from llamactl.cli.screen import progress
    from llamactl.quantities import show_bytes
    from llamactl.training.bench import training
    from llamactl.training.forecast import Pace

    progress.print(f" Measuring {steps} steps …")
    found = training(config, dataset, RunDir.fresh(config.preset), world, steps)
    speed = config.train.tokens_per_step / found.step
    progress.print(
        f" {found.step:.3g} s a step, {speed:,.0f} tokens/s, {found.start:.1f} s to start, {show_bytes(found.memory)}"
    )
    return Pace(found.step, found.start)

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
    from llamactl.config import Config
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
    from dataclasses import asdict
    from json import dumps

    from llamactl.artifacts import DatasetDir, RunDir
    from llamactl.cli.choices import Tariff, show_budgets, show_ways
    from llamactl.cli.receipt import receipt, show_memory
    from llamactl.cli.screen import output
    from llamactl.errors import BadUsage
    from llamactl.training.cards import find
    from llamactl.training.choices import budgets, ways
    from llamactl.training.meter import peak_rate
    from llamactl.training.origin import anchored
    from llamactl.training.plan import arranged, resolve
    from llamactl.training.world import join

    if card and probe:
        raise BadUsage("--card and --probe exclude each other.", "A card that is not here can't take steps.")
    if gpus > 1 and probe:
        raise BadUsage(
            "--gpus and --probe exclude each other.", "Only one device can be tried from here.", "Leave --probe out."
        )
    typed = [*overrides(tokens, device, precision, data, settings or []), *positions(context, rope_scaling)]
    typed += [{"train": {"parallel": parallel}}] if parallel else []
    chosen = continued(init_from, preset, config, typed) if init_from else fresh(preset, config, typed)
    dataset = DatasetDir.named(chosen.data.name).open()
    named = find(card) if card else None
    tariff = Tariff.read(price, watts or (gpus * named.watts if named else 0.0))
    world = named.world if named else join(chosen.train)
    rate = named.rate if named else peak_rate(world) / (gpus if world.device.type == "cpu" else 1)
    chosen = anchored(chosen, dataset)
    world = arranged(chosen, dataset, many(world, gpus))
    shared = ways(chosen, dataset, world, rate) if gpus > 1 else []
    if shared and not json:
        show_ways(shared, world)
    resolved = resolve(chosen, dataset, world)
    made = receipt(resolved, dataset, world, rate, RunDir.fresh(resolved.preset))
    pace = probed(resolved, dataset, world, min(PROBED, made.steps)) if probe else None
    show_memory(made.memory)
    choices = budgets(chosen, dataset, world, rate, pace)
    if json:
        made_of = [asdict(each) for each in choices]
        ways_of = {"ways": [asdict(each) for each in shared], "budgets": made_of}
        output.print(dumps(ways_of if shared else made_of), markup=False)
    else:
        show_budgets(choices, tariff)


def many(world: "World", gpus: int) -> "World":
    """So many devices like a world's: GPUs on machines of 8 or, where that does not come out even, of fewer; a CPU is one."""
    from dataclasses import replace

    most = A_MACHINE if world.device.type == "cuda" else gpus
    neighbours = next(each for each in range(min(most, gpus), 0, -1) if gpus % each == 0)
    return replace(world, size=gpus, neighbours=neighbours)


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

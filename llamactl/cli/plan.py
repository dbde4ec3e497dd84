"""llamactl plan: estimate memory, time, cost and loss of a run before it starts."""

from typing import TYPE_CHECKING, Annotated

import typer

from llamactl.cli.bounds import check_finite
from llamactl.cli.options import (
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
    SeparateDocuments,
    Settings,
    Tokens,
    config_of_init_from,
    config_of_new_run,
    typed_positions,
    typed_settings,
)
from llamactl.cli.preconditions import import_torch, require_settings_and_dataset

if TYPE_CHECKING:
    from llamactl.cli.ui.plan_tables import Tariff
    from llamactl.config.schema import Config
    from llamactl.corpus.dataset import Dataset
    from llamactl.distributed.context import World
    from llamactl.hardware.gpus import Card
    from llamactl.planning.step_time import StepTime

CARD_HELP = "Plan for another GPU, by its data sheet: a4000, rtx4090, a100, h100, ..."
GPUS_HELP = "Number of GPUs, or without a GPU the number of processes on this CPU."
PROBE_HELP = "Measure up to 20 real steps and use their speed."
PRICE_HELP = "Price per hour of all devices, or per kilowatt-hour: 2.50/h or 0.30/kWh."
WATTS_HELP = "Power draw of all devices, in watts."
PROBE_STEPS = 20
MAX_GPUS_PER_MACHINE = 8


def plan(
    data: DataName = "",
    preset: PresetName = "",
    tokens: Tokens = "",
    config: ConfigFile = None,
    settings: Settings = None,
    separate_documents: SeparateDocuments = False,
    init_from: InitFrom = "",
    context: Context = None,
    rope_scaling: RopeScaling = "",
    device: DeviceName = "",
    precision: PrecisionName = "",
    card: Annotated[str, typer.Option(help=CARD_HELP, show_default="this machine", rich_help_panel=MACHINE)] = "",
    gpus: Annotated[int, typer.Option(min=1, help=GPUS_HELP, rich_help_panel=MACHINE)] = 1,
    parallel: ParallelWay = "",
    probe: Annotated[bool, typer.Option("--probe", help=PROBE_HELP, rich_help_panel=MACHINE)] = False,
    watts: Annotated[
        float,
        typer.Option(min=0, callback=check_finite, help=WATTS_HELP, show_default="by data sheet", rich_help_panel=MACHINE),
    ] = 0.0,
    price: Annotated[str, typer.Option(help=PRICE_HELP, show_default=False, rich_help_panel=SAID)] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON on stdout.", rich_help_panel=SAID)] = False,
) -> None:
    """Estimate memory, time, cost and loss of a run before it starts."""
    typed = [*typed_settings(tokens, device, precision, data, settings or []), *typed_positions(context, rope_scaling)]
    typed += [{"train": {"parallel": parallel}}] if parallel else []
    typed += [{"data": {"separate_documents": True}}] if separate_documents else []
    if not init_from:
        require_settings_and_dataset(preset, config, typed)
    from llamactl.errors import UsageError
    from llamactl.hardware.gpus import find_card

    if card and probe:
        raise UsageError("--card and --probe exclude each other.", "A GPU that is not in this machine can't run steps.")
    if gpus > 1 and probe:
        raise UsageError("--gpus and --probe exclude each other.", "One process can't measure the steps of many.")
    gpu = find_card(card) if card else None
    import_torch()
    from llamactl.cli.ui.plan_tables import Tariff
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.planning.resolve import choose_sharding
    from llamactl.training.init_from import pin_init_from
    from llamactl.training.teachers import pin_teachers

    chosen = config_of_init_from(init_from, preset, config, typed) if init_from else config_of_new_run(preset, config, typed)
    dataset = DatasetDir.from_name(chosen.data.name).open()
    tariff = Tariff.read(price, watts or (gpus * gpu.watts if gpu else 0.0))
    world, rate = choose_devices(chosen, gpu, gpus)
    chosen = pin_teachers(pin_init_from(chosen, dataset), dataset)
    show_plans(chosen, dataset, choose_sharding(chosen, dataset, world), rate, None if json else tariff, probe)


def choose_devices(config: "Config", card: "Card | None", number: int) -> "tuple[World, float]":
    """Return the World to plan for and the FLOP/s of each device: --card, or this machine.

    GPUs are assumed in machines of 8 or, where that does not divide their number, of fewer.
    """
    from dataclasses import replace

    from llamactl.distributed.context import init_device, world_of_card
    from llamactl.hardware.throughput import peak_flops

    # A GPU that is not here can't be measured: its data sheet takes the place of a measurement.
    world = world_of_card(card, config.train.precision) if card else init_device(config.train)
    # Processes on a CPU share its FLOP/s; GPUs each have their own.
    shared = world.device.type == "cpu"
    divisors = (size for size in range(min(MAX_GPUS_PER_MACHINE, number), 0, -1) if number % size == 0)
    local_world_size = number if shared else next(divisors)
    rate = card.rate if card else peak_flops(world.device, world.precision.dtype) / (number if shared else 1)
    return replace(world, size=number, local_world_size=local_world_size), rate


def show_plans(config: "Config", dataset: "Dataset", world: "World", rate: float, tariff: "Tariff | None", probe: bool) -> None:
    """Print the plan and its alternatives, as tables or JSON; raises OutOfSpace when it does not fit."""
    from dataclasses import asdict

    from llamactl.cli.ui.console import show_json
    from llamactl.cli.ui.plan_summary import show_memory, show_plan_summary
    from llamactl.cli.ui.plan_tables import show_budgets, show_ways
    from llamactl.planning.alternatives import parallel_strategies, plan_budgets
    from llamactl.planning.resolve import resolve_config
    from llamactl.runs.run_dir import RunDir

    strategies = parallel_strategies(config, dataset, world, rate) if world.size > 1 else []
    # Before the summary, which raises where the chosen strategy does not fit: another one may.
    if strategies and tariff:
        show_ways(strategies, world)
    resolved = resolve_config(config, dataset, world)
    plan = show_plan_summary(resolved, dataset, world, rate, RunDir.with_new_name(resolved.preset))
    step_time = measure_pace(resolved, dataset, world, min(PROBE_STEPS, plan.steps)) if probe else None
    show_memory(plan.memory)
    plans = plan_budgets(config, dataset, world, rate, step_time)
    if tariff:
        show_budgets(plans, tariff)
        return
    # A single device has no strategies to choose from: its JSON is the list of budgets alone.
    budgets = [asdict(plan) for plan in plans]
    show_json({"ways": [asdict(strategy) for strategy in strategies], "budgets": budgets} if strategies else budgets)


def measure_pace(config: "Config", dataset: "Dataset", world: "World", steps: int) -> "StepTime":
    """Run and time real steps, and print their speed."""
    from llamactl.cli.ui.console import progress
    from llamactl.planning.step_time import StepTime
    from llamactl.runs.run_dir import RunDir
    from llamactl.training.benchmark import benchmark_training
    from llamactl.units import show_bytes

    progress.print(f" Measuring {steps} steps …")
    result = benchmark_training(config, dataset, RunDir.with_new_name(config.preset), world, steps)
    speed = config.train.tokens_per_step / result.step
    progress.print(
        f" {result.step:.3g} s per step, {speed:,.0f} tokens/s, {result.start:.1f} s to start, {show_bytes(result.memory)}"
    )
    return StepTime(result.step, result.start)

"""llamactl bench: measure the machine, training and decoding."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.options import MODEL_HELP, DataName, DeviceName, Settings, config_of_new_run, typed_settings
from llamactl.cli.preconditions import import_torch

app = typer.Typer(no_args_is_help=True, help="Measure the speed of this machine, of training and of decoding.")

# An untrained model has no dataset to take the vocabulary from: GPT-2's 50,257 ids, up to a multiple of 128.
GPT2_ROWS = 50_304
JSON_HELP = "Print the results as JSON on stdout."
BenchPreset = Annotated[
    str,
    typer.Option(help="tiny, 10m, 50m, 150m, 350m, 1b, 7b, notebook.", show_default="150m", autocompletion=completion.presets),
]


@app.command(epilog="Example: llamactl bench peak")
def peak(
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Measure FLOP/s of matrix products and memory bandwidth."""
    import_torch()
    # Imported in the function, as in every command: torch takes seconds, and --help and Tab must not wait for it.
    from llamactl.cli.ui.console import show_figures
    from llamactl.config.schema import TrainConfig
    from llamactl.distributed.context import init_device
    from llamactl.training import benchmark as training_benchmark

    result = training_benchmark.measure_device(init_device(TrainConfig(device=device)))
    rows = {f"{name} products": f"{rate / 1e12:.3g} TFLOP/s" for name, rate in result.rates.items()}
    if result.sheet:
        rows["data sheet"] = f"{result.sheet / 1e12:.4g} TFLOP/s"
    rows["memory"] = f"{result.bandwidth / 1e9:,.0f} GB/s, read and written"
    show_figures(f"{result.device}, {result.threads} threads", rows, asdict(result) if json else None)


@app.command(epilog="Example: llamactl bench train --preset 150m --set train.precision=bf16")
def train(
    data: DataName = "",
    preset: BenchPreset = "150m",
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Optimizer steps to time.")] = 10,
    settings: Settings = None,
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Time training steps: tokens per second, MFU, and the time of gradients, optimizer and data."""
    import_torch()
    from llamactl.cli.ui.console import show_figures
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.distributed.context import init_device
    from llamactl.hardware.throughput import peak_flops
    from llamactl.planning.fit import check_memory
    from llamactl.planning.plan import make_plan
    from llamactl.planning.resolve import resolve_config
    from llamactl.runs.run_dir import RunDir
    from llamactl.training import benchmark as training_benchmark
    from llamactl.training.teachers import pin_teachers
    from llamactl.units import show_bytes, show_count

    config = config_of_new_run(preset, None, typed_settings("", device, "", data, settings or []))
    dataset = DatasetDir.from_name(config.data.name).open()
    world = init_device(config.train)
    config = resolve_config(pin_teachers(config, dataset), dataset, world)
    # Refuse what can't fit with advice, before the first step runs out of memory.
    check_memory(make_plan(config, dataset, world, peak_flops(world.device, world.precision.dtype)), config, world)
    result = training_benchmark.benchmark_training(config, dataset, RunDir.with_new_name(config.preset), world, steps)
    batch = f"{config.train.tokens_per_step // config.model.context} x {config.model.context:,} tokens"
    rows = {
        "step": f"{result.step:.3g} s for {batch}, micro-batch {config.train.micro_batch}",
        "speed": f"{show_count(result.tokens_per_second)} tokens/s",
        "MFU": f"{result.mfu:.0%}; {result.matrix_share:.0%} of the {result.matrix_rate / 1e12:.3g} TFLOP/s measured meanwhile",
        "memory": f"{show_bytes(result.memory)} at the peak",
        "gradients": f"{result.gradients / result.step:.1%} of a step",
        "optimizer": f"{result.optimizer / result.step:.1%}",
        "waiting for data": f"{result.data / result.step:.1%}",
        "start": f"{result.start:.1f} s more for the first steps"
        + (", with compilation" if config.train.compile != "off" else ""),
    }
    title = f"{config.preset} on {world.device}, {world.precision.name}, {config.optim.name}"
    show_figures(title, rows, asdict(result) if json else None)


@app.command(epilog="Example: llamactl bench decode --preset 150m --weights int8")
def decode(
    run: Annotated[
        str,
        typer.Option(help=MODEL_HELP, show_default="the preset, untrained", autocompletion=completion.checkpoints),
    ] = "",
    preset: BenchPreset = "",
    batches: Annotated[str, typer.Option(help="Batch sizes to time, separated by commas.")] = "1,4,16",
    prompt: Annotated[int, typer.Option(min=1, max=1_000_000, help="Tokens of each prompt.")] = 16,
    new: Annotated[int, typer.Option(min=8, max=1_000_000, help="Tokens to add.")] = 48,
    weights: Annotated[Literal["f32", "bf16", "int8", "int4"], typer.Option(help="Format of the weights.")] = "f32",
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Time decoding: time to the first token, tokens per second, and the rate at which memory is read."""
    import_torch()
    from llamactl.checkpoint import io as checkpoint_io
    from llamactl.cli.decoding import convert_for_decoding
    from llamactl.cli.ui.console import show_figures
    from llamactl.config.schema import build_config, preset_settings
    from llamactl.errors import UsageError
    from llamactl.hardware.device import choose_device
    from llamactl.inference.benchmark import benchmark_decoding, reading_rate
    from llamactl.model.llama import Llama
    from llamactl.units import read_count

    if run and preset:
        raise UsageError("--run and --preset exclude each other.", "A run has its own model.")
    preset, target = preset or "150m", choose_device(device)
    if run:
        _, model, _, _ = checkpoint_io.open_model(run, target)
    else:
        config = build_config([{"model": {"vocab_size": GPT2_ROWS}}, preset_settings(preset)]).model
        model = Llama(config).to(target).eval()
    model = convert_for_decoding(model, weights)
    # Decoding small batches is bound by reading the weights, so that rate is what it is compared with.
    rate = reading_rate(target)
    results = [benchmark_decoding(model, read_count(batch), prompt, new) for batch in batches.split(",")]
    rows = {
        f"batch {result.batch}": f"{result.tokens_per_second:,.1f} tokens/s, {result.read_rate / 1e9:.1f} GB/s read, "
        f"first token after {result.first:.2f} s"
        for result in results
    }
    title = f"{run or preset}, {weights} weights on {target}, sums of rows read {rate / 1e9:.1f} GB/s"
    show_figures(title, rows, {"rate": rate, "decoding": [asdict(result) for result in results]} if json else None)

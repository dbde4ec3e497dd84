"""Measure a page of `llamactl export web` in headless Chromium without a network: size, speed, equality with PyTorch.

python benchmarks/web_page.py exports/RUN-step664-int8.html
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llamactl.config.schema import ModelConfig
from llamactl.export.web import read_page
from tests.export.pages import stored_models, write_in_page, write_in_torch
from tests.serving.browser import OFFLINE, Page


def model_config(about: dict[str, Any]) -> ModelConfig:
    """Return the config of a page's model, for one without scaled rotary embedding."""
    shape = about["shape"]
    names = {name for name, *_ in (*about["layout"]["vectors"], *about["layout"]["matrices"])}
    return ModelConfig(
        n_layers=shape["layers"], dim=shape["dim"], n_heads=shape["heads"], n_kv_heads=shape["kvHeads"],
        head_dim=shape["headDim"], ffn_dim=shape["ffn"], context=shape["context"], vocab_size=shape["vocab"],
        norm_eps=shape["eps"], tie_embeddings="head" not in names, qk_norm="0.q_norm" in names, qkv_bias="0.q_bias" in names,
    )  # fmt: skip


def main() -> None:
    """Print the figures of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    options = parser.parse_args()
    about, blobs = read_page(options.page.read_text("utf-8"))
    models, config, ids = stored_models(about, blobs), model_config(about), about["start"] or [about["end"]]
    print(f"size         {options.page.stat().st_size:,} bytes, {len(models)} checkpoints, {about['type']}")
    for facts in about["checkpoints"]:
        print(f"  step {facts['step']:>6}  {facts['bitsPerByte']} bits per byte")
    print(f"  before rounding: {about['bitsPerByteBefore']}, on {about['heldOutTokens']:,} held-out tokens")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Page(options.page.resolve().as_uri(), Path(profile), flags=OFFLINE) as page,
    ):
        page.wait("vocabulary !== null && job === null")
        for number, model in enumerate(models):
            found, _ = write_in_page(page, ids, options.tokens, number)
            expected = write_in_torch(model, config, ids, options.tokens)
            same = sum(a == b for a, b in zip(found, expected, strict=True))
            print(f"equal        {same:,} of {options.tokens:,} greedy tokens, step {about['checkpoints'][number]['step']}")
        rates = sorted(count / write_in_page(page, ids, count)[1] for count in [200] * 5)
        spread = f"{rates[0]:.0f} to {rates[-1]:.0f}"
        print(f"speed        {statistics.median(rates):.0f} tokens per second (200 tokens, median of 5; {spread})")
    print(f"threads      PyTorch {torch.get_num_threads()}")


if __name__ == "__main__":
    main()

"""What weights of fewer bits cost: bits per byte of held-out text, with the logits of the step that `sample` decodes with.

    python benchmarks/weights.py RUN [--windows 96]

RUN is a run with its dataset. Windows of the held-out split are read a token at a time, 16 windows at once, by the native step;
every format reads the same ones. The error is that of the difference from f32, over windows.
"""

import argparse
import copy
import math

import numpy as np
import torch

from llamactl.checkpoint.io import load_model
from llamactl.checkpoint.select import locate_checkpoint
from llamactl.config.schema import build_config
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import DatasetDir
from llamactl.model.cache import KVCache
from llamactl.model.convert import FORMATS, convert_weights
from llamactl.model.llama import Llama
from llamactl.model.native_step import MOST_SEQUENCES, NativeStep


@torch.inference_mode()
def losses_of(model: Llama, windows: Windows, count: int, wordy: torch.Tensor) -> torch.Tensor:
    """Return the nats of each window's tokens that have bytes."""
    dtype, found = model.model.embed_tokens.weight.dtype, []
    for start in range(0, count, MOST_SEQUENCES):
        batch = windows.batch(np.arange(start, min(start + MOST_SEQUENCES, count)) * len(windows) // count)  # from all parts
        step = NativeStep(model, KVCache(model.config, len(batch.inputs), torch.device("cpu"), dtype), model.config.vocab_size)
        nats = torch.zeros(len(batch.inputs), dtype=torch.float64)
        for place in range(windows.context):
            targets = batch.targets[:, place : place + 1]
            logits, total = step(batch.inputs[:, place : place + 1], [place] * len(batch.inputs))
            nats += ((total - logits.gather(1, targets)) * wordy[targets])[:, 0].double()
        found.append(nats)
    return torch.cat(found)


def main() -> None:
    """Print a row for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--windows", type=int, default=96)
    options = parser.parse_args()
    model, tokenizer, state = load_model(locate_checkpoint(options.run), torch.device("cpu"))
    dataset = DatasetDir.from_name(build_config([state.config]).data.name).open()
    windows = Windows(dataset.val, model.config.context)
    count = min(options.windows, len(windows))
    lengths = torch.from_numpy(np.array(tokenizer.byte_lengths))
    numbers = np.arange(count) * len(windows) // count
    size = lengths[windows.batch(numbers).targets].sum().item() * math.log(2)
    print(f"{options.run}, {count} windows of {windows.context} tokens\n\n| weights | bits per byte | above f32 | in % |")
    print("|---|---:|---:|---:|")
    base = None
    for kind in FORMATS:
        nats = losses_of(convert_weights(copy.deepcopy(model), kind), windows, count, lengths > 0)
        base = nats if base is None else base
        more, error = (nats - base).sum() / size, (nats - base).std() * math.sqrt(count) / size
        print(f"| {kind} | {nats.sum() / size:.5f} | {more:+.5f} ± {error:.5f} | {100 * more * size / base.sum():+.2f} |")


if __name__ == "__main__":
    main()

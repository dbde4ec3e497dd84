"""What a page of a model does in Chromium, and what PyTorch does with the same integers."""

import json
from itertools import islice
from typing import Any

from llamactl.config.schema import ModelConfig
from llamactl.export.web_weights import Rounded, parse_change, parse_rounded
from llamactl.model.decode import Sampler, decode_tokens
from tests.serving.browser import Page

GREEDY = {"temperature": 0, "topK": 0, "topP": 1, "seed": 1, "stops": False}


def stored_models(about: dict[str, Any], blobs: list[bytes]) -> list[Rounded]:
    """Return the checkpoints of a page, the last of the run first."""
    models = [parse_rounded(about["layout"], blobs[1], about["type"])]
    for facts, blob in zip(about["checkpoints"][1:], blobs[2:], strict=True):
        models.append(parse_change(about["layout"], blob, facts).apply(models[-1]))
    return models


def write_in_page(page: Page, ids: list[int], count: int, checkpoint: int = 0) -> tuple[list[int], float]:
    """Let the page write greedily after some ids; returns the new ids and the seconds that it took."""
    message = {"ids": ids, "count": count, "sampling": GREEDY, "checkpoint": checkpoint}
    script = f"""new Promise((resolve) => {{
      const got = [];
      receivers.tokens = ({{ tokens }}) => got.push(...tokens.map((token) => token.id));
      receivers.done = ({{ seconds }}) => resolve([got, seconds]);
      begin("write", {json.dumps(message)}, false);
    }})"""
    got, seconds = page.run(script)
    return got, seconds


def write_in_torch(model: Rounded, config: ModelConfig, ids: list[int], count: int) -> list[int]:
    """Return what PyTorch writes greedily with the same integers."""
    steps = decode_tokens(model.to_model(config), [ids], config.vocab_size, Sampler(temperature=0), [0])
    return [int(step.tokens[0]) for step in islice(steps, count)]

"""Evaluate a run's last checkpoint on the whole validation split, once training is over."""

from collections.abc import Iterator

import torch

from llamactl.checkpoint.io import load_model
from llamactl.checkpoint.select import find_best_step
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.corpus.targets import window_rule
from llamactl.inference.evaluate import evaluate_streams
from llamactl.planning.defaults import final_eval_tokens
from llamactl.planning.flops import flops_per_token
from llamactl.runs.metrics_log import last_rows
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Evaluated, Event, Stopped


def evaluate_at_the_end(
    events: Iterator[Event], run: RunDir, dataset: Dataset, config: Config, device: torch.device
) -> Iterator[Event]:
    """Pass the events of a run on; after the last step yield what `llamactl eval` finds for the checkpoint that RUN names.

    This is the last one, or with patience the best that was validated. Nothing for a run that was stopped, or evaluated before,
    nor where the split is larger than what was trained on.
    """
    stopped = False
    for event in events:
        stopped = stopped or isinstance(event, Stopped)
        yield event
    last = -(-config.train.tokens // config.train.tokens_per_step)
    best = find_best_step(run) if config.train.patience > 0 else None
    step = last if best is None else best
    evaluated = last_rows(run.metrics_path, (Evaluated.kind,), run.path).get(Evaluated.kind, {}).get("step") == step
    if stopped or evaluated or step not in run.steps() or not final_eval_tokens(config.train, dataset.info):
        return
    model, tokenizer, state = load_model(run.checkpoint(step), device)
    rule = window_rule(dataset, config.data, config.model.context)
    result = evaluate_streams(model, tokenizer, dataset.val, False, dataset.byte_lengths, rule)
    yield Evaluated(
        step,
        state.tokens,
        state.tokens * flops_per_token(config.model),
        state.seconds,
        result.loss,
        result.bits_per_byte,
        result.tokens,
        result.loss_error,
        result.bits_per_byte_error,
    )

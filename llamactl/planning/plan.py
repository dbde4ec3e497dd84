"""Plan a run before its first step: sizes, steps, memory, time."""

from dataclasses import dataclass, replace

from llamactl.config.parameters import num_embedding_params, num_params
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.planning.communication import estimate_traffic
from llamactl.planning.defaults import count_windows, final_eval_tokens, worthwhile_epochs, worthwhile_tokens
from llamactl.planning.flops import flops_per_token
from llamactl.planning.loss import LossPrediction, predict_loss
from llamactl.planning.memory import checkpoint_bytes, free_memory
from llamactl.planning.memory_estimate import MemoryEstimate, estimate_memory
from llamactl.planning.step_time import Duration, estimate_duration, estimate_step_time, max_checkpoints_on_disk


@dataclass(frozen=True)
class Plan:
    """The plan of a run; memory, the micro-batch and the bytes `sent` in a step are per rank.

    `checkpoint` and `disk` are bytes of one checkpoint and of all at the peak. `loss` is None for kinds of runs that were never
    measured.
    """

    parameters: int
    embedding_parameters: int
    steps: int
    tokens_per_step: int
    tokens: int
    micro_batch: int
    processes: int
    parallel: str
    sent: int
    epochs: float
    worthwhile_epochs: int
    flops: float
    duration: Duration
    memory: MemoryEstimate
    memory_free: int
    checkpoint: int
    disk: int
    loss: LossPrediction | None

    @property
    def tokens_per_parameter(self) -> float:
        """Return the tokens per parameter; at about 20 more of either gain equally (Hoffmann et al. 2022, arXiv 2203.15556)."""
        return self.tokens / self.parameters

    @property
    def worthwhile_tokens(self) -> int:
        """Return the budget in tokens above which a model of this size, or this dataset, gains little."""
        return worthwhile_tokens(self.parameters, self.tokens / self.epochs, self.worthwhile_epochs)


def make_plan(config: Config, dataset: Dataset, world: World, rate: float, measured: bool = False) -> Plan:
    """Plan a resolved config on devices with `rate` FLOP/s each; where its steps were `measured`, it is compiled already.

    Raises DataError for a dataset without a single window.
    """
    model, train = config.model, config.train
    available = count_windows(config, dataset)
    # All steps have the same size, so a run has a few tokens more than its budget.
    steps = -(-train.tokens // train.tokens_per_step)
    tokens = steps * train.tokens_per_step
    epochs = tokens / (available * model.context)
    duration = estimate_duration(
        config, world, steps, estimate_step_time(config, world, rate), final_eval_tokens(train, dataset.info)
    )
    saved = checkpoint_bytes(model, config.optim.name) + len(dataset.tokenizer.description)
    return Plan(
        parameters=num_params(model),
        embedding_parameters=num_embedding_params(model),
        steps=steps,
        tokens_per_step=train.tokens_per_step,
        tokens=tokens,
        micro_batch=train.micro_batch,
        processes=world.size,
        parallel=world.parallel,
        sent=estimate_traffic(config, world).total,
        epochs=epochs,
        worthwhile_epochs=worthwhile_epochs(train),
        flops=tokens * flops_per_token(model),
        duration=replace(duration, start=0.0) if measured else duration,
        memory=estimate_memory(config, world),
        memory_free=free_memory(world),
        checkpoint=saved,
        disk=max_checkpoints_on_disk(train, steps) * saved,
        # The scaling law was fitted to runs with Muon from fresh weights only.
        loss=predict_loss(model, tokens, epochs, dataset) if config.optim.name == "muon" and not train.init_from else None,
    )

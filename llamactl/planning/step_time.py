"""Estimate the time of a step and of a run, and the number of its checkpoints on disk."""

from dataclasses import dataclass

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, TrainConfig
from llamactl.distributed.context import World
from llamactl.planning.batch_size import windows_per_rank
from llamactl.planning.communication import estimate_traffic, exchange_seconds, overlaps_compute
from llamactl.planning.flops import flops_per_token, update_flops

# The MFU of compiled steps is E w / (w + W) for a model of width w, as small matrix products are slower. E and W were fitted
# to runs on two CPU cores (docs/benchmarks.md), by bytes per element; EAGER is the factor without compiling. Nothing was
# measured on a GPU: half is what others report for models of this size.
EFFICIENCY = {2: (0.83, 75.0), 4: (0.95, 51.0)}
EAGER = {2: 0.7, 4: 0.85}
ON_GPU = 0.5
# Seconds on two CPU cores: to load the compiler; to compile, plus more per 1,000 of width; per sampled token, plus the time to
# read the weights.
LOADING, COMPILING, COMPILING_WIDE, PER_TOKEN = 7.0, 18.0, 10.0, 0.003
READING = {"cpu": 20e9, "cuda": 4e11}  # bytes of weights per second when decoding; assumed for a GPU


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, and of compiling before the first one."""

    step: float
    start: float


@dataclass(frozen=True)
class Duration:
    """Seconds of a run: its steps, its validations and samples (`looking`), and its start with compiling."""

    steps: float
    looking: float
    start: float

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.seconds_left(0.0)

    def seconds_left(self, done: float) -> float:
        """Return the seconds that are left when a fraction of the steps is done: the start is repeated."""
        return self.start + (1 - done) * (self.steps + self.looking)


def max_checkpoints_on_disk(train: TrainConfig, steps: int) -> int:
    """Return the largest number of checkpoints on disk at a time: the last ones, the best, the kept, and one being written."""
    # When saving by time, a step may take longer than the interval: then each step is saved.
    saved = steps if train.save_minutes else -(-steps // train.save_every)
    kept = steps // train.keep_every if train.keep_every else 0
    return min(saved, train.keep_last + 1 + kept) + 1


def expected_efficiency(config: Config, world: World) -> float:
    """Return the expected MFU of a step, as a fraction."""
    if world.device.type != "cpu":
        return ON_GPU
    width, size = config.model.dim, world.precision.dtype.itemsize
    limit, half_width = EFFICIENCY[size]
    return limit * width / (width + half_width) * (1.0 if config.train.compile != "off" else EAGER[size])


def estimate_step_time(config: Config, world: World, rate: float) -> StepTime:
    """Estimate the time of a step of a resolved config on devices of `rate` FLOP/s each, for the busiest rank.

    `benchmark.benchmark_training` measures it instead.
    """
    model, train = config.model, config.train
    achieved = expected_efficiency(config, world) * rate
    windows = windows_per_rank(train.tokens_per_step // model.context, world.size)
    # Recomputing is a second forward pass, a third of the work.
    recompute = 4 / 3 if train.activation_checkpointing == "on" else 1.0
    # Teachers, taken to be of the same size, only read, which is a third of it.
    taught = 1 + len(train.teachers) / 3
    compute = recompute * taught * windows * model.context * flops_per_token(model) / achieved
    # Weights and gradients may overlap with compute; Muon's matrices are sent in the update, with nothing to hide behind.
    communication, muon_exchange = exchange_seconds(estimate_traffic(config, world), world)
    gradients = max(compute, communication) if overlaps_compute(world) else compute + communication
    step = gradients + update_flops(model, config.optim.name, world.size) / achieved + muon_exchange
    return StepTime(step, COMPILING + COMPILING_WIDE * model.dim / 1000 if train.compile != "off" else 0.0)


def estimate_duration(config: Config, world: World, steps: int, step_time: StepTime, evaluated: int = 0) -> Duration:
    """Estimate the duration of a run of some steps, after which `evaluated` tokens of the validation split are measured."""
    train = config.train
    validations = -(-steps // train.eval_every)
    # A forward pass alone is a third of the work of a step's tokens. The update, which has none, takes as long as some more.
    update = update_flops(config.model, config.optim.name, world.size) / flops_per_token(config.model)
    token_seconds = step_time.step / (train.tokens_per_step + update) / 3
    forward = train.eval_tokens * token_seconds
    # Weights are read once per sampled token, in fp32.
    token = PER_TOKEN + 4 * num_params(config.model) / READING.get(world.device.type, READING["cpu"])
    samples = len(train.prompts) * train.sample_tokens * token
    loading = LOADING if train.compile != "off" else 0.0
    looking = validations * (forward + samples) + evaluated * token_seconds
    return Duration(steps * step_time.step, looking, step_time.start + loading)

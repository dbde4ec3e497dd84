"""What a run will take of a machine: bytes of memory, checkpoints on its disk, and seconds."""

from dataclasses import dataclass

from llamactl.config import Config, ModelConfig, TrainConfig
from llamactl.model.llama import count
from llamactl.training.meter import resident
from llamactl.training.sizing import (
    checkpoint_bytes,
    chunk_bytes,
    flops_per_token,
    gathered_bytes,
    own_windows,
    stacks,
    state_bytes,
    update_bytes,
    update_flops,
    window_bytes,
)  # fmt: skip
from llamactl.training.traffic import buffers, overlaps, seconds, traffic
from llamactl.training.world import World

# The share of a device's matrix rate that compiled steps reach is E w / (w + W) for a model of width w: small products are
# slow beside it. E and W are of two cores, by bytes of the numbers that are multiplied (docs/benchmarks.md), and so is what
# is left of it without compiling. Nothing was measured on a GPU; half is what others report for models of this size.
EFFICIENCY = {2: (0.83, 75.0), 4: (0.95, 51.0)}
EAGER = {2: 0.7, 4: 0.85}
ON_GPU = 0.5

# Seconds on two cores: loading the compiler; the first compilation, and more for each 1,000 of width; a token of a sample,
# beside the reading of the weights.
LOADING, COMPILING, COMPILING_WIDE, PER_TOKEN = 7.0, 18.0, 10.0, 0.003
READING = {"cpu": 20e9, "cuda": 4e11}  # bytes of weights a second when decoding; on a GPU assumed
CONTEXT_OF_CUDA = 500_000_000  # bytes that the driver and cuBLAS take
LIBRARIES, COMPILER = 100_000_000, 100_000_000  # bytes that they take when they begin to work
DISTRIBUTED = 150_000_000  # bytes that torch.distributed and gloo take, a third of it when they are imported
COMPILED_KEEPS = 0.65  # the share of activations that compiled blocks keep: they fuse, and work out again what is cheap


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one process at most.

    `saving` is the copy of weights and optimizer that is written while training goes on, `gathered` what is whole for a
    while of weights and gradients that processes share, `exchange` what their communication holds.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    update: int
    saving: int
    program: int
    gathered: int = 0
    exchange: int = 0

    @property
    def total(self) -> int:
        """Activations and logits are gone when the optimizer needs room for its update, and weights no longer whole."""
        held = self.weights + self.gradients + self.optimizer + self.saving + self.program + self.exchange
        return held + max(self.activations + self.logits + self.gathered, self.update)

    @property
    def needed(self) -> int:
        """What must be free: the program is there already, and without room for a copy training waits for the disk."""
        return self.total - self.program - self.saving


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and of what comes before the first one."""

    step: float
    start: float


@dataclass(frozen=True)
class Duration:
    """Seconds of a run: its steps; validations, samples and checkpoints; and the start, with compiling."""

    steps: float
    looking: float
    start: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.steps + self.looking + self.start


def memory(config: Config, world: World) -> Memory:
    """What a resolved config needs of the device of one of the world's processes, the leading one where they differ."""
    model, optimizer = config.model, config.optim.name
    parameters, state = -(-4 * count(model) // world.shards), state_bytes(model, optimizer, world.shards)
    on_cpu = world.device.type == "cpu"
    compiled = config.train.compile == "on"
    kept = config.train.micro_batch * window_bytes(model, config.train.recompute == "on", world)
    return Memory(
        weights=parameters,
        gradients=parameters,
        optimizer=state - 2 * parameters,
        activations=int(kept * COMPILED_KEEPS) if compiled else kept,
        logits=chunk_bytes(model, world),
        update=update_bytes(model, optimizer, world),
        saving=_saving(model, optimizer, world),
        program=resident() + LIBRARIES + compiled * COMPILER + (world.size > 1) * DISTRIBUTED if on_cpu else CONTEXT_OF_CUDA,
        gathered=gathered_bytes(model, world),
        exchange=buffers(optimizer, world),
    )


def _saving(model: ModelConfig, optimizer: str, world: World) -> int:
    """Bytes of a copy in main memory, made by the one process that writes; of shared weights one tensor at a time is whole."""
    if not world.leads:
        return 0
    if world.shards > 1:
        return 4 * max(model.vocab_size * model.width, *(rows * columns for rows, columns in stacks(model)))
    return checkpoint_bytes(model, optimizer) if world.device.type == "cpu" else 0


def checkpoints_at_most(train: TrainConfig, steps: int) -> int:
    """Checkpoints that are on the disk at once: those that are kept, the best, and the one that is being written."""
    made = -(-steps // train.save_every)
    kept = steps // train.keep_every if train.keep_every else 0
    return min(made, train.keep + 1 + kept) + 1


def efficiency(config: Config, world: World) -> float:
    """The share of the device's matrix rate that a step reaches."""
    if world.device.type != "cpu":
        return ON_GPU
    width, size = config.model.width, world.precision.dtype.itemsize
    best, half = EFFICIENCY[size]
    return best * width / (width + half) * (1.0 if config.train.compile == "on" else EAGER[size])


def pace(config: Config, world: World, rate: float) -> Pace:
    """How fast a resolved config goes on devices of `rate` FLOP/s each; `bench.training` measures it instead.

    The busiest process counts. On a GPU weights and gradients are on their way while it works, which is assumed; a CPU has the
    same cores for both. What Muon sends is never hidden. Recomputing is a second forward pass, a third of the work.
    """
    model, train = config.model, config.train
    reached = efficiency(config, world) * rate
    own = own_windows(train.tokens_per_step // model.context, world.size)
    again = 4 / 3 if train.recompute == "on" else 1.0
    working = again * own * model.context * flops_per_token(model) / reached
    sending, exchanging = seconds(traffic(config, world), world)
    meanwhile = max(working, sending) if overlaps(world) else working + sending
    step = meanwhile + update_flops(model, config.optim.name, world.size) / reached + exchanging
    return Pace(step, COMPILING + COMPILING_WIDE * model.width / 1000 if train.compile == "on" else 0.0)


def duration(config: Config, world: World, steps: int, at: Pace) -> Duration:
    """Seconds of a run of so many steps at a pace."""
    train = config.train
    looks = -(-steps // train.eval_every)
    forward = train.eval_tokens / train.tokens_per_step * at.step / 3
    token = PER_TOKEN + 4 * count(config.model) / READING.get(world.device.type, READING["cpu"])
    samples = len(train.prompts) * train.sample_tokens * token
    loading = LOADING if train.compile == "on" else 0.0
    return Duration(steps * at.step, looks * (forward + samples), at.start + loading)

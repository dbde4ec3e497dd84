"""What a run will take of a machine: bytes of memory, and seconds."""

from dataclasses import dataclass

from llamactl.config import Config
from llamactl.model.llama import count
from llamactl.training.meter import resident
from llamactl.training.sizing import (
    checkpoint_bytes,
    chunk_bytes,
    flops_per_token,
    largest_stack,
    state_bytes,
    update_flops,
    window_bytes,
)  # fmt: skip
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
COMPILED_KEEPS = 0.65  # the share of activations that compiled blocks keep: they fuse, and work out again what is cheap


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at most. `saving` is the copy of weights and optimizer that is written while training goes on."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    update: int
    saving: int
    program: int

    @property
    def total(self) -> int:
        """Activations and logits are gone when the optimizer needs room for its update."""
        held = self.weights + self.gradients + self.optimizer + self.saving + self.program
        return held + max(self.activations + self.logits, self.update)

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
    """What a resolved config needs where the world's device is."""
    model, optimizer, parameters = config.model, config.optim.name, 4 * count(config.model)
    state = state_bytes(model, optimizer)
    on_cpu = world.device.type == "cpu"
    compiled = config.train.compile == "on"
    kept = config.train.micro_batch * window_bytes(model, config.train.recompute == "on", world)
    return Memory(
        weights=parameters,
        gradients=parameters,
        optimizer=state - 2 * parameters,
        activations=int(kept * COMPILED_KEEPS) if compiled else kept,
        logits=chunk_bytes(model, world),
        update=5 * largest_stack(model) if optimizer == "muon" else 0,
        saving=checkpoint_bytes(model, optimizer) if on_cpu else 0,
        program=resident() + LIBRARIES + compiled * COMPILER if on_cpu else CONTEXT_OF_CUDA,
    )


def efficiency(config: Config, world: World) -> float:
    """The share of the device's matrix rate that a step reaches."""
    if world.device.type != "cpu":
        return ON_GPU
    width, size = config.model.width, world.precision.dtype.itemsize
    best, half = EFFICIENCY[size]
    return best * width / (width + half) * (1.0 if config.train.compile == "on" else EAGER[size])


def pace(config: Config, world: World, rate: float) -> Pace:
    """How fast a resolved config goes on a device of `rate` FLOP/s; `bench.training` measures it instead."""
    work = config.train.tokens_per_step * flops_per_token(config.model) + update_flops(config.model, config.optim.name)
    step = work / (efficiency(config, world) * rate)
    return Pace(step, COMPILING + COMPILING_WIDE * config.model.width / 1000 if config.train.compile == "on" else 0.0)


def duration(config: Config, world: World, steps: int, at: Pace) -> Duration:
    """Seconds of a run of so many steps at a pace."""
    train = config.train
    looks = -(-steps // train.eval_every)
    forward = train.eval_tokens / train.tokens_per_step * at.step / 3
    token = PER_TOKEN + 4 * count(config.model) / READING.get(world.device.type, READING["cpu"])
    samples = len(train.prompts) * train.sample_tokens * token
    loading = LOADING if train.compile == "on" else 0.0
    return Duration(steps * at.step, looks * (forward + samples), at.start + loading)

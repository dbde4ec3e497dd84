"""Estimate the peak memory of a run."""

from dataclasses import dataclass

from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, ModelConfig
from llamactl.distributed.context import World
from llamactl.hardware.memory import resident_memory
from llamactl.planning.communication import buffer_bytes
from llamactl.planning.flops import matrix_shapes
from llamactl.planning.memory import (
    checkpoint_bytes,
    chunk_bytes,
    gathered_bytes,
    mask_bytes,
    state_bytes,
    teacher_bytes,
    update_bytes,
    window_bytes,
)

CONTEXT_OF_CUDA = 500_000_000  # bytes of the driver and cuBLAS
LIBRARIES, COMPILER = 100_000_000, 100_000_000  # bytes that they allocate at first use
WORKSPACES = 67_000_000  # bytes of cuBLAS for the stream of a graph, by two threads
DISTRIBUTED = 150_000_000  # bytes of torch.distributed and gloo, a third of it at import


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of one rank on its device, by what they are for.

    `saving` is the copy of weights and optimizer state that is written to disk while training continues, `gathered` the
    weights and gradients that FSDP holds unsharded, `exchange` the buffers of communication, `program` code and libraries.
    A CUDA `graph` keeps what the backward pass needs while the weights are updated. `teachers` are their weights and logits.
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
    graph: int = 0
    teachers: int = 0

    @property
    def total(self) -> int:
        """Return the peak: the sum, with only the larger one of backward pass and update."""
        # Activations, logits and gathered weights are freed before the optimizer allocates its update.
        held = self.weights + self.gradients + self.optimizer + self.teachers + self.graph
        persistent = held + self.saving + self.program + self.exchange
        return persistent + max(self.activations + self.logits + self.gathered, self.update)

    @property
    def required_bytes(self) -> int:
        """Return the bytes that must be free before the run."""
        # The program is loaded already, and a save without memory for its copy writes from the weights themselves.
        return self.total - self.program - self.saving


def estimate_memory(config: Config, world: World) -> MemoryEstimate:
    """Estimate the peak memory of a resolved config on a rank of `world`; rank 0 also needs the copy that is saved."""
    model, optimizer = config.model, config.optim.name
    parameters, state = -(-4 * num_params(model) // world.shards), state_bytes(model, optimizer, world.shards)
    on_cpu = world.device.type == "cpu"
    compiled = config.train.compile != "off"
    window = window_bytes(model, config.train.activation_checkpointing == "on", world, compiled) + mask_bytes(config, world)
    activations = config.train.micro_batch * window
    logits = chunk_bytes(model, world, compiled, config.train.micro_batch * model.context)
    update = update_bytes(model, optimizer, world)
    return MemoryEstimate(
        weights=parameters,
        gradients=parameters,
        # state_bytes counts weights and gradients too.
        optimizer=state - 2 * parameters,
        activations=activations,
        logits=logits,
        update=update,
        saving=_saving(model, optimizer, world),
        program=resident_memory() + LIBRARIES + compiled * COMPILER + (world.size > 1) * DISTRIBUTED
        if on_cpu
        else CONTEXT_OF_CUDA,
        gathered=gathered_bytes(model, world),
        exchange=buffer_bytes(optimizer, world),
        teachers=teacher_bytes(config, world),
        graph=WORKSPACES + min(activations + logits, update) if config.train.compile == "graphs" else 0,
    )


def _saving(model: ModelConfig, optimizer: str, world: World) -> int:
    """Return the bytes on the device of the copy that is saved; on a GPU it is in main memory, which is not counted here."""
    if not world.is_main:
        return 0
    # Sharded weights are gathered and written one tensor at a time: the largest one counts.
    if world.shards > 1:
        return 4 * max(model.vocab_size * model.dim, *(rows * columns for rows, columns in matrix_shapes(model)))
    return checkpoint_bytes(model, optimizer) if world.device.type == "cpu" else 0

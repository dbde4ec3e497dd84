"""Count the bytes of weights, gradients, optimizer state and activations, and the bytes that are free."""

import torch

from llamactl.config.parameters import num_embedding_params, num_params
from llamactl.config.schema import Config, ModelConfig
from llamactl.distributed.context import World
from llamactl.hardware import limits
from llamactl.hardware.memory import available_memory
from llamactl.model.attention import packs_documents
from llamactl.model.objective import CHUNK, CHUNK_ON_GPU
from llamactl.planning.flops import matrix_shapes, num_block_params, num_root_params

# The fraction of activations that compiled blocks keep on a CPU: they fuse operations, and recompute what is cheap.
COMPILED_KEEPS = 0.65


def update_bytes(model: ModelConfig, optimizer: str, world: World) -> int:
    """Return the bytes of temporary tensors in an update: Muon stacks all matrices of one shape, in fp32; AdamW needs none."""
    if optimizer != "muon":
        return 0
    # The largest shape counts, as stacks are updated one after another; five of a stack's size exist at the peak.
    if world.size == 1:
        return 5 * max(4 * number * rows * columns for (rows, columns), number in matrix_shapes(model).items())
    needed = []
    for (rows, columns), number in matrix_shapes(model).items():
        # Of several ranks, each has its rows of all matrices twice, and the full matrices that it updates: received, put
        # together and orthogonalized. Those are freed before the replicas' updates arrive.
        parts = -(-4 * number * rows * columns // world.shards)
        full = 4 * -(-number // world.size) * rows * columns
        needed.append(2 * parts + max(6 * full, parts + full if world.replicas > 1 else 0))
    return max(needed)


def state_bytes(model: ModelConfig, optimizer: str, shards: int = 1) -> int:
    """Return the bytes of weights, gradients and optimizer state on one of `shards` ranks, all in fp32."""
    # Muon keeps one number per weight, AdamW two. Muon has the matrices inside blocks: all but embedding, head and the norms.
    total = num_params(model)
    matrices = total - num_embedding_params(model) - (2 * model.n_layers + 1) * model.dim
    return -(-4 * (2 * total + (2 * total - matrices if optimizer == "muon" else 2 * total)) // shards)


def gathered_bytes(model: ModelConfig, world: World) -> int:
    """Return the bytes of weights that FSDP gathers, and of their gradients before they are scattered."""
    if world.shards == 1:
        return 0
    # Two blocks in the compute dtype, as the next one is prefetched, and the gradient of one with its copy in fp32. Embedding
    # and head stay gathered in fp32 for a micro-batch, with the head's gradient.
    width = world.precision.dtype.itemsize
    return num_block_params(model) * (3 * width + 4) + 4 * (num_root_params(model) + model.vocab_size * model.dim)


def checkpoint_bytes(model: ModelConfig, optimizer: str) -> int:
    """Return the bytes of a checkpoint's tensors: everything but the gradients."""
    return state_bytes(model, optimizer) - 4 * num_params(model)


def window_bytes(model: ModelConfig, recompute: bool, world: World, compiled: bool = False) -> int:
    """Return the bytes that a window keeps for its backward pass: activations, or with `recompute` each layer's input."""
    layer = layer_bytes(model, world, compiled)
    kept = 4 * model.dim * model.n_layers + layer if recompute else model.n_layers * layer
    return model.context * (kept + 8 * model.dim)


def layer_bytes(model: ModelConfig, world: World, compiled: bool) -> int:
    """Return the bytes that a layer keeps of a token for the backward pass."""
    # The term with `width` counts tensors in the compute dtype, the others are in fp32.
    width, query = world.precision.dtype.itemsize, model.n_heads * model.head_dim
    heads = query + 2 * model.n_kv_heads * model.head_dim
    if world.device.type != "cuda":
        eager = 20 * model.dim + 4 * heads + width * (2 * model.dim + 3 * heads + 4 * model.ffn_dim)
        return int(COMPILED_KEEPS * eager) if compiled else eager
    # Both sums of the residual stream, the inputs of the products, queries, keys, values and the output of attention; eager,
    # that output once more in another order, and the gate's activation.
    kept = 2 * model.dim + heads + (1 if compiled else 2) * query + (3 if compiled else 4) * model.ffn_dim
    return 8 * model.dim + width * kept


def mask_bytes(config: Config, world: World) -> int:
    """Return the bytes of the mask that keeps the documents of a window apart; 0 where attention needs none."""
    context, dtype = config.model.context, world.precision.dtype
    if not config.data.separate_documents or packs_documents(world.device, dtype, config.model.head_dim, context):
        return 0
    # Made of bools, and for a GPU's kernels once more of numbers.
    return context**2 * (1 if world.device.type == "cpu" else 1 + dtype.itemsize)


def chunk_bytes(model: ModelConfig, world: World, compiled: bool, tokens: int = CHUNK_ON_GPU) -> int:
    """Return the bytes of the largest chunk of logits, of their gradient, and of the head in the compute format.

    `tokens` are those of a micro-batch, of which a chunk has no more.
    """
    width = world.precision.dtype.itemsize
    # Compiled, the gradient replaces the logits; on a CPU there is a second copy of them for a moment.
    on_gpu = compiled and world.device.type == "cuda"
    logits = min(tokens, CHUNK_ON_GPU) * width if on_gpu else min(tokens, CHUNK) * (4 + 2 * width)
    return logits * model.vocab_size + (4 + width) * model.vocab_size * model.dim


def teacher_bytes(config: Config, world: World) -> int:
    """Return the bytes of the teachers of a run, taken to be of its own size, and of a chunk of the logits of each."""
    width, model, count = world.precision.dtype.itemsize, config.model, len(config.train.teachers)
    logits = model.vocab_size * (CHUNK_ON_GPU if world.device.type == "cuda" else CHUNK)
    # Weights are fp32 in fp16's place (`training.teachers.load_teachers`), and so is the mean of what they predict.
    weight = 2 if world.precision.dtype == torch.bfloat16 else 4
    return count * (weight * num_params(model) + width * logits) + (4 * logits if count else 0)


def free_memory(world: World) -> int:
    """Return the free bytes on a rank's device."""
    # A CPU's memory is shared by all ranks of the machine; Apple's GPUs may use a part of it.
    if world.memory_override:
        return world.memory_override
    free = free_device_memory(world.device)
    return free // world.local_world_size if world.device.type == "cpu" else free


def free_device_memory(device: torch.device) -> int:
    """Return the free bytes on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free_main_memory()


def free_main_memory() -> int:
    """Return the available bytes of main memory, within a container's limit; the file cache counts as available."""
    system = available_memory()
    within_limits = limits.free_memory()
    return system if within_limits is None else min(system, within_limits)


def held_bytes(model: ModelConfig, optimizer: str, world: World) -> int:
    """Return the bytes of a training step that do not depend on the micro-batch."""
    return state_bytes(model, optimizer, world.shards) + chunk_bytes(model, world, compiled=True) + gathered_bytes(model, world)

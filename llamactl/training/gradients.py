"""What a step computes: gradients, accumulated over micro-batches, and the update of the weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamactl.corpus.batches import Batch
from llamactl.distributed.context import World
from llamactl.distributed.dtensor import full_tensor, split_sharded
from llamactl.distributed.parallelize import average_vectors, sync_gradients
from llamactl.errors import OutOfSpace
from llamactl.hardware.device import is_out_of_memory
from llamactl.hardware.memory import memory_for


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of a batch to a device."""

    def copy(tensor: Tensor) -> Tensor:
        # Only from pinned memory does a GPU copy while it computes. MPS would copy memory that is freed meanwhile
        # (pytorch/pytorch#189690).
        is_pinned = device.type == "cuda"
        return (tensor.pin_memory() if is_pinned else tensor).to(device, non_blocking=is_pinned)

    # One copy for both; views of rows with gaps would be copied from pageable memory.
    inputs, targets = copy(torch.stack([batch.inputs, batch.targets])).unbind()
    dropout, documents = (None if each is None else copy(each) for each in (batch.dropout, batch.documents))
    return batch._replace(inputs=inputs, targets=targets, dropout=dropout, documents=documents)


def accumulate_gradients(
    forward: nn.Module,
    micro_batches: list[Batch],
    world: World,
    scaler: torch.amp.GradScaler,
    graph: Callable[[Batch], Tensor] | None = None,
) -> Tensor:
    """Add up the gradients of a step's micro-batches; return the mean loss over all targets that count, a scalar tensor.

    `graph` does what `add_gradients` does with a micro-batch, where it was captured.
    """
    loss_sum = torch.zeros((), device=world.device)
    for number, batch in enumerate(micro_batches, start=1):
        with sync_gradients(forward, last=number == len(micro_batches)):
            loss_sum += graph(batch) if graph else add_gradients(forward, batch, world, scaler)
    average_vectors(forward, world)
    return world.all_reduce_sum(loss_sum)


def add_gradients(forward: nn.Module, batch: Batch, world: World, scaler: torch.amp.GradScaler) -> Tensor:
    """Add the gradients of a micro-batch to those of the weights; return its share of the step's loss, a scalar tensor."""
    with world.precision.compute(world.device):
        loss = forward(batch.inputs, batch.targets, batch.dropout, batch.documents) * batch.share
    # The shares of all ranks together add up to 1, but DDP and FSDP average over ranks: undo that.
    scaler.scale(loss * world.size).backward()
    return loss.detach()


def zero_gradients(module: nn.Module, keep: bool) -> None:
    """Set the gradients to zero where they are, all in a few launches, or without `keep` free them."""
    if keep:
        torch._foreach_zero_([weight.grad for weight in module.parameters() if weight.grad is not None])
    else:
        module.zero_grad()


def check_repeatable(error: RuntimeError, world: World, micro_batch: int) -> None:
    """Raise the error of a step, unless it says that memory is full and a step with smaller micro-batches may have enough."""
    if micro_batch == 1 or not is_out_of_memory(error):
        raise error
    if world.size > 1:  # the others wait inside this step's collectives, so one rank can't repeat it alone
        fix = f"Add --set train.micro_batch={-(-micro_batch // 2)}"
        raise OutOfSpace(f"{world.device} ran out of memory.", "", fix) from error


def clip_gradients(weights: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients to a norm of at most `max_norm`, in place; return the norm that they had, a scalar tensor."""
    groups = [group for group in split_sharded(weights) if group]
    norms = [nn.utils.get_total_norm([weight.grad for weight in group if weight.grad is not None]) for group in groups]
    total = nn.utils.get_total_norm([full_tensor(norm) for norm in norms]) if len(norms) > 1 else full_tensor(norms[0])
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, total)
    return total


def update_weights(optimizers: list[Optimizer], scaler: torch.amp.GradScaler, device: torch.device) -> None:
    """Update the weights; raises OutOfSpace, as a step can't be repeated when some weights are updated already."""
    with memory_for("the update", device, "Train a smaller --preset, or add --set optim.name=adamw"):
        for optimizer in optimizers:
            scaler.step(optimizer)

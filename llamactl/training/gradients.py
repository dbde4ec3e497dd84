"""What a step computes: gradients, accumulated over micro-batches, and the update of the weights."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llamactl.corpus.batches import Batch
from llamactl.distributed.context import World
from llamactl.distributed.parallelize import sync_gradients
from llamactl.hardware.memory import memory_for


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of a batch to a device."""

    def copy(tensor: Tensor) -> Tensor:
        # Only from pinned memory does a GPU copy while it computes.
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    # One copy for both; views of rows with gaps would be copied from pageable memory.
    inputs, targets = copy(torch.stack([batch.inputs, batch.targets])).unbind()
    dropout, documents = (None if each is None else copy(each) for each in (batch.dropout, batch.documents))
    return batch._replace(inputs=inputs, targets=targets, dropout=dropout, documents=documents)


def accumulate_gradients(forward: nn.Module, micro_batches: list[Batch], world: World, scaler: torch.amp.GradScaler) -> Tensor:
    """Add up the gradients of a step's micro-batches; return the mean loss over all targets that count, a scalar tensor."""
    loss_sum = torch.zeros((), device=world.device)
    for number, (inputs, targets, weight, dropout, documents) in enumerate(micro_batches, start=1):
        with sync_gradients(forward, last=number == len(micro_batches)):
            with world.precision.compute(world.device):
                loss = forward(inputs, targets, dropout, documents) * weight
            # The weights of all ranks together add up to 1, but DDP and FSDP average over ranks: undo that.
            scaler.scale(loss * world.size).backward()
        loss_sum += loss.detach()
    return world.all_reduce_sum(loss_sum)


def update_weights(optimizers: list[Optimizer], scaler: torch.amp.GradScaler, device: torch.device) -> None:
    """Update the weights; raises OutOfSpace, as a step can't be repeated when some weights are updated already."""
    with memory_for("the update", device, "Train a smaller --preset, or add --set optim.name=adamw"):
        for optimizer in optimizers:
            scaler.step(optimizer)

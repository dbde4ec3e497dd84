"""Batches on their way to the device."""

import pytest
import torch

from llamactl.corpus.batches import Batch
from llamactl.training.gradients import clip_gradients, to_device


def test_a_batch_is_pinned_without_gaps_and_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(12).view(2, 6)
    pinned: list[torch.Tensor] = []
    copies: list[bool] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        copies.append(non_blocking)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    moved = to_device(Batch(rows[:, :-1], rows[:, 1:], 0.5, torch.ones(2, 3, 4)), torch.device("cuda"))
    assert copies == [True, True]
    assert all(tensor.is_contiguous() for tensor in pinned)
    assert moved.share == 0.5
    assert torch.equal(moved.inputs, rows[:, :-1])
    assert torch.equal(moved.targets, rows[:, 1:])
    # MPS copies later what is freed by then.
    to_device(Batch(rows[:, :-1], rows[:, 1:], 0.5), torch.device("mps"))
    assert (copies[2:], len(pinned)) == ([False], 2)


def test_gradients_are_clipped_as_pytorch_does_it() -> None:
    torch.manual_seed(0)
    weights = [[torch.nn.Parameter(torch.zeros(4, 5)), torch.nn.Parameter(torch.zeros(5))] for _ in range(2)]
    for ours, reference in zip(*weights, strict=True):
        ours.grad = torch.randn_like(ours)
        reference.grad = ours.grad.clone()
    assert torch.equal(clip_gradients(weights[0], 0.5), torch.nn.utils.clip_grad_norm_(weights[1], 0.5))
    for ours, reference in zip(*weights, strict=True):
        assert ours.grad is not None
        assert reference.grad is not None
        assert torch.equal(ours.grad, reference.grad)

"""Batches on their way to the device."""

import pytest
import torch

from llamactl.corpus.batches import Batch
from llamactl.training.gradients import to_device


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

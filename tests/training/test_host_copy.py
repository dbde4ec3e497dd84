"""The copy of a checkpoint in main memory, from which it is written while training goes on."""

import pytest
import torch
from torch import Tensor

from llamactl.checkpoint.snapshot import Snapshot
from llamactl.training import host_copy
from llamactl.training.host_copy import HostCopies


def snapshot(value: float, state: bool = True) -> Snapshot:
    return Snapshot({"a": torch.full((2, 3), value)}, {"a:step": torch.tensor(value)} if state else {})


def values(taken: Snapshot | None) -> list[float]:
    assert taken
    return [tensor.flatten()[0].item() for tensors in taken for tensor in tensors.values()]


def test_a_copy_does_not_change_with_the_tensors_and_its_memory_is_given_back() -> None:
    copies, first = HostCopies(), snapshot(1.0)
    taken, again = copies.copy_to_host(first), copies.copy_to_host(first)
    first.weights["a"].zero_()
    assert values(taken) == values(again) == [1.0, 1.0]
    assert taken
    assert again
    assert taken.weights["a"].data_ptr() != again.weights["a"].data_ptr()


def test_there_is_none_where_it_would_leave_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "free_main_memory", lambda: 2 * snapshot(0.0).nbytes)
    assert HostCopies().copy_to_host(snapshot(0.0)) is None


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Pretend that tensors are those of a GPU; return whether each one that is allocated for them is pinned."""
    asked: list[bool] = []
    empty_like = torch.empty_like

    def allocate(tensor: Tensor, device: str, pin_memory: bool) -> Tensor:
        asked.append(pin_memory)
        return empty_like(tensor, device=device)

    monkeypatch.setattr(torch, "empty_like", allocate)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return asked


def test_tensors_of_a_gpu_are_copied_to_pinned_memory_that_is_used_again(pinned: list[bool]) -> None:
    copies = HostCopies()
    first = copies.copy_to_host(snapshot(1.0, state=False))
    second = copies.copy_to_host(snapshot(2.0))
    assert pinned == [True, True, True], "an optimizer has no state before its first update"
    third = copies.copy_to_host(snapshot(3.0))
    assert first is not second is third
    assert values(third) == [3.0, 3.0]
    assert len(pinned) == 3


def test_where_not_so_much_can_be_pinned_other_memory_does(pinned: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "free_main_memory", lambda: 3 * snapshot(0.0).nbytes)
    assert values(HostCopies().copy_to_host(snapshot(1.0))) == [1.0, 1.0]
    assert pinned == [False, False]

    def refuse(*_: object, pin_memory: bool, **__: object) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return torch.zeros(2, 3)

    monkeypatch.setattr(host_copy, "free_main_memory", lambda: 10**9)
    monkeypatch.setattr(torch, "empty_like", refuse)
    assert values(HostCopies().copy_to_host(snapshot(4.0, state=False))) == [4.0]

"""The loss in chunks is the loss as a whole, to the last digits of fp32."""

import pytest
import torch
from torch.nn import functional as F

from llamactl.config.schema import ModelConfig
from llamactl.model import objective
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken, mean_loss

SHAPE = ModelConfig(n_layers=1, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, context=32, vocab_size=128)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "CHUNK", 16)


@pytest.mark.parametrize("rows", [1, 16, 50])
def test_loss_and_gradients_are_those_of_whole_logits(rows: int) -> None:
    targets = torch.randint(0, 128, (rows,))
    hidden, head = torch.randn(rows, 32), torch.randn(128, 32)
    results = []
    for chunked in (True, False):
        x, weight = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = mean_loss(x, weight, targets) if chunked else F.cross_entropy(F.linear(x, weight), targets)
        torch.autograd.backward(3 * loss)
        results.append([loss.detach(), x.grad, weight.grad])
    for mine, reference in zip(*results, strict=True):
        assert mine is not None
        assert reference is not None
        assert torch.allclose(mine, reference, rtol=1e-5, atol=1e-6)


def test_bf16_products_give_nearly_the_same_loss_and_fp32_gradients() -> None:
    model = Llama(SHAPE)
    inputs, targets = torch.randint(0, 128, (2, 2, 32)).unbind()
    exact = NextToken(model)(inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = NextToken(model)(inputs, targets)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), abs=2e-3)
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_each_tokens_loss_is_the_cross_entropy() -> None:
    model = Llama(SHAPE)
    inputs, targets = torch.randint(0, 128, (2, 3, 32)).unbind()
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none").view(3, 32)
    assert torch.allclose(NextToken(model).per_token(inputs, targets), expected, atol=1e-5)


def test_the_logits_never_stand_whole() -> None:
    """No tensor that the loss makes has as many elements as all its logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            tensors = found if isinstance(found, tuple | list) else [found]
            self.size = max([self.size, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
            return found

    hidden, head = torch.randn(160, 32, requires_grad=True), torch.randn(128, 32, requires_grad=True)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        torch.autograd.backward(mean_loss(hidden, head, torch.zeros(160, dtype=torch.int64)))
    assert largest.size < 160 * 128 / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_chunk_gives_loss_and_gradients_of_the_plain_one(dtype: torch.dtype) -> None:
    """To 1e-5 in fp32, and 2e-3 where logits are in bf16; the code is that which is compiled, here run eagerly."""
    targets = torch.randint(0, 128, (50,))
    hidden, head = torch.randn(50, 32).to(dtype), torch.randn(128, 32)
    results = []
    for fused in (None, objective.fused_chunk):
        x, weight = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = mean_loss(x, weight, targets, fused)
        torch.autograd.backward(loss)
        assert x.grad is not None
        assert weight.grad is not None
        results.append([loss.detach(), x.grad.float(), weight.grad])
    atol = 1e-5 if dtype == torch.float32 else 2e-3
    for plain, other in zip(*results, strict=True):
        assert torch.allclose(plain, other, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("device", "tokens", "rows"),
    [
        ("cuda", 12_800, 6_400),
        ("cuda", 32_768, 8_192),
        ("cuda", 100, 100),
        ("cuda", 8_193, 2_731),
        ("cuda", 8_209, 4_105),  # a prime: two shapes
        ("cpu", 4_096, 1_024),
        ("cpu", 2_560, 640),
        ("cpu", 1_792, 896),
    ],
)
def test_compiled_chunks_are_alike(device: str, tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "CHUNK", 1_024)
    assert objective.rows_of_chunk(tokens, device, objective.fused_chunk) == rows
    assert objective.rows_of_chunk(tokens, device, None) == 1_024

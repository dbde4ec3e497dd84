"""Attention against the textbook: a softmax over all visible keys, written out."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

from llamactl.model import attention as attention_module
from llamactl.model.attention import attention, blockwise_causal, kernels_for_any_length, sdpa, takes_groups


def textbook(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("width", [8, 50])
@pytest.mark.parametrize("positions", [1, 33, 64, 130])
def test_causal_attention_is_the_textbooks(kv_heads: int, width: int, positions: int) -> None:
    q, k, v = torch.randn(2, 6, positions, width), *torch.randn(2, 2, kv_heads, positions, width)
    visible = torch.ones(positions, positions, dtype=torch.bool).tril()
    for found in (attention(q, k, v), sdpa(q, k, v), blockwise_causal(q, k, v)):
        assert torch.allclose(found, textbook(q, k, v, visible), atol=1e-5)
    low = [x.to(torch.bfloat16) for x in (q, k, v)]
    assert torch.allclose(attention(low[0], low[1], low[2]).float(), textbook(q, k, v, visible), atol=0.03)


def test_a_mask_says_what_is_visible() -> None:
    q, k, v = torch.randn(1, 4, 3, 8), *torch.randn(2, 1, 2, 10, 8)
    visible = torch.arange(10) <= torch.tensor([4, 5, 6])[:, None]
    assert torch.allclose(attention(q, k, v, visible), textbook(q, k, v, visible), atol=1e-5)


def test_a_mask_may_be_added_to_the_scores() -> None:
    q, k, v = torch.randn(2, 6, 1, 8), *torch.randn(2, 2, 2, 10, 8)
    visible = torch.arange(10) > 3
    added = torch.zeros(10).masked_fill_(~visible, -torch.inf)
    assert torch.equal(attention(q, k, v, added), attention(q, k, v, visible))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_one_query_sees_everything(kv_heads: int) -> None:
    q, k, v = torch.randn(2, 6, 1, 8), *torch.randn(2, 2, kv_heads, 10, 8)
    assert torch.allclose(attention(q, k, v), textbook(q, k, v, torch.ones(1, 10, dtype=torch.bool)), atol=1e-5)


def test_keys_are_repeated_where_no_fast_kernel_takes_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(2, 6, 5, 8), *torch.randn(2, 2, 2, 5, 8)
    expected = sdpa(q, k, v)
    heads: list[int] = []
    kernel = F.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        heads.append(k.shape[1])
        return kernel(q, k, v, **options)

    monkeypatch.setattr(attention_module, "takes_groups", lambda q, mask: False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    assert torch.allclose(sdpa(q, k, v), expected, atol=1e-6)
    assert heads == [6]


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "groups"),
    [
        ("cuda", torch.bfloat16, False, True),
        ("cuda", torch.bfloat16, True, False),
        ("cuda", torch.float16, False, False),
        ("cuda", torch.float32, False, False),
        ("mps", torch.float32, False, False),
        ("cpu", torch.float32, True, True),
    ],
)
def test_only_flash_attention_takes_groups_on_a_gpu(device: str, dtype: torch.dtype, masked: bool, groups: bool) -> None:
    q = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert takes_groups(cast(torch.Tensor, q), torch.ones(1) if masked else None) is groups


def test_prompts_of_any_length_do_without_cudnn() -> None:
    with kernels_for_any_length(torch.device("cuda")):
        assert not torch._C._get_cudnn_sdp_enabled()
        assert torch._C._get_flash_sdp_enabled()
    assert torch._C._get_cudnn_sdp_enabled()

"""Causal softmax attention with the kernel that is fastest on the device."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# Longest context, in tokens, for which `blockwise_causal` is faster than PyTorch's flash kernel on a CPU: it takes 0.7 of
# that kernel's time in fp32 and half of it in bf16 (docs/benchmarks.md).
SHORT = 1024


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the softmax attention of the queries over the keys and values, B H T E.

    q is B H T E; k and v are B K S E with K key/value heads, each shared by H/K query heads. The queries are the last T of the
    S positions. Without a mask, T is S or 1 and each query attends to all keys up to its own position; otherwise `mask` (bool,
    broadcastable to B 1 T S) is True where a query may attend.
    """
    if q.shape[2] == 1:
        return single_query(q, k, v, mask)
    if mask is None and q.device.type == "cpu" and q.shape[2] <= SHORT:
        return blockwise_causal(q, k, v)
    return sdpa(q, k, v, mask)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention as `attention` does, with the kernel that PyTorch selects; without a mask it is causal, and T is S.

    Where possible this is FlashAttention (Dao et al. 2022, arXiv 2205.14135), which never stores the full T x S score matrix.
    """
    shared = q.shape[1] // k.shape[1]
    if shared > 1 and not takes_groups(q, mask):
        k, v = (each.repeat_interleave(shared, dim=1) for each in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])


def takes_groups(q: Tensor, mask: Tensor | None) -> bool:
    """Check whether a fast kernel of the device takes fewer key/value heads than query heads.

    On GPUs only FlashAttention does, which is for bf16 without a mask (fp16 is that of GPUs which do not have it): for all
    else PyTorch would store the full matrix of scores.
    """
    return q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype == torch.bfloat16 and mask is None)


def document_mask(documents: Tensor) -> Tensor:
    """Return the mask of causal attention within documents, B 1 T T; `documents` (B T) numbers the document of each token."""
    return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]


def kernels_for_any_length(device: torch.device) -> AbstractContextManager[None]:
    """Return a context for prompts of all lengths: without cuDNN's attention, which is planned anew for each of them."""
    if device.type != "cuda":
        return nullcontext()
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(fast)
    return context


def single_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention for a single query (T = 1) that attends to all S positions, or where `mask` is True.

    The query heads that share a key/value head are grouped in one product, so that keys and values are read only once.
    """
    shared = (q.shape[0], k.shape[1], -1, q.shape[3])
    scores = ((q / math.sqrt(q.shape[3])).reshape(shared) @ k.mT).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1).to(v.dtype) @ v).reshape(q.shape)


def blockwise_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention (T = S) in blocks of consecutive queries.

    Each block uses only the keys up to its last query, so most of the masked scores above the diagonal are never computed.
    """
    rise = max(64, q.shape[2] // 8)
    starts = range(0, q.shape[2], rise)
    steps = [_step(q[:, :, start : start + rise], k[:, :, : start + rise], v[:, :, : start + rise]) for start in starts]
    return torch.cat(steps, dim=2)


def _step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention for one block: the queries (B H T E) are the last T of the S positions of k and v.

    The query heads that share a key/value head are stacked as rows of one matrix.
    """
    batch, heads, positions, width = q.shape
    shared = (batch, k.shape[1], -1, width)
    scores = ((q / math.sqrt(width)).reshape(shared) @ k.mT).view(batch, heads, positions, -1)
    later = torch.ones(positions, k.shape[2], dtype=torch.bool, device=q.device).triu(1 + k.shape[2] - positions)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return (weights.view(batch, k.shape[1], -1, k.shape[2]) @ v).view(batch, heads, positions, width)

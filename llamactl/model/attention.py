"""Softmax attention, by the kernel that is fastest where it runs."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this many positions a CPU is quicker with a staircase of dense products than with PyTorch's flash kernel:
# 0.7 of its time in fp32, half of it in bf16 (docs/benchmarks.md).
SHORT = 1024


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mix values by how well their keys match each query.

    q is B H T E; k and v are B K S E, each shared by H/K query heads; the result is B H T E. The queries are the last T of
    S positions, and see the keys up to their own; a `mask` (broadcast to B 1 T S) says True where else they may look.
    """
    if q.shape[2] == 1 and mask is None:
        return single(q, k, v)
    if mask is None and q.device.type == "cpu" and q.shape[2] <= SHORT:
        return staircase(q, k, v)
    return fused(q, k, v, mask)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's choice of kernel: flash where it can (Dao et al. 2022, arXiv 2205.14135); the scores never stand whole."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])


def single(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query, which sees everything: keys and values are read once for all the heads that share them."""
    shared = (q.shape[0], k.shape[1], -1, q.shape[3])
    weights = ((q / math.sqrt(q.shape[3])).reshape(shared) @ k.mT).float().softmax(-1).to(v.dtype)
    return (weights @ v).reshape(q.shape)


def staircase(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, some queries at a time with the keys up to their last: most of what lies ahead is never computed."""
    rise = max(64, q.shape[2] // 8)
    starts = range(0, q.shape[2], rise)
    steps = [_step(q[:, :, start : start + rise], k[:, :, : start + rise], v[:, :, : start + rise]) for start in starts]
    return torch.cat(steps, dim=2)


def _step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last queries of a sequence; the heads that share a key head are one tall matrix."""
    batch, heads, positions, width = q.shape
    shared = (batch, k.shape[1], -1, width)
    scores = ((q / math.sqrt(width)).reshape(shared) @ k.mT).view(batch, heads, positions, -1)
    later = torch.ones(positions, k.shape[2], dtype=torch.bool, device=q.device).triu(1 + k.shape[2] - positions)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return (weights.view(batch, k.shape[1], -1, k.shape[2]) @ v).view(batch, heads, positions, width)

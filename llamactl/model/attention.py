"""Softmax attention, by the kernel that is fastest where it runs."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this many positions a CPU with bf16 instructions is quicker with whole matrices of scores than with PyTorch's
# flash kernel: at 256 positions a training step of `tiny` took 0.77 of the time (docs/benchmarks.md).
SHORT = 512


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Mix values by how well their keys match each query.

    q is B H T E; k and v are B K S E, each shared by H/K query heads; the result is B H T E.
    Without a mask each query sees the keys up to its own position; `mask` (T S) says True where it may look.
    """
    if mask is None and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= SHORT:
        return whole(q, k, v)
    return fused(q, k, v, mask)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's choice of kernel: flash where it can (Dao et al. 2022, arXiv 2205.14135); the scores never stand whole."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as the textbook has it; the query heads that share a key head are one tall matrix."""
    batch, heads, positions, width = q.shape
    shared = (batch, k.shape[1], -1, width)
    later = torch.ones(positions, positions, dtype=torch.bool, device=q.device).triu(1)
    scores = (q.reshape(shared) @ k.mT).view(batch, heads, positions, positions) / math.sqrt(width)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return (weights.view(batch, k.shape[1], -1, positions) @ v).view(batch, heads, positions, width)

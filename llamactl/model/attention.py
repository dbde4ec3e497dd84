"""Causal softmax attention with the kernel that is fastest on the device."""

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llamactl.hardware.device import multiplies_bf16

# Longest context, in tokens, for which `blockwise_causal` is faster than PyTorch's flash kernel on a CPU: it takes 0.7 of
# that kernel's time in fp32 and half of it in bf16 (docs/benchmarks.md).
SHORT = 1024

# The widest head that FlashAttention takes, and what its width is a multiple of.
FLASH_WIDTH, FLASH_MULTIPLE = 256, 8


class Documents(NamedTuple):
    """Documents that do not see one another: where each begins in the windows laid one after another, and their end (N+1).

    `kernel` computes all at once; None where they are computed one by one.
    """

    starts: Tensor
    kernel: Callable[..., Any] | None = None


Visible = Tensor | Documents | None


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Visible = None) -> Tensor:
    """Return the softmax attention of the queries over the keys and values, B H T E.

    q is B H T E; k and v are B K S E with K key/value heads, each shared by H/K query heads. The queries are the last T of the
    S positions. Without a mask, T is S or 1 and each query attends to all keys up to its own position; otherwise `mask`
    (broadcastable to B 1 T S) is True where a query may attend, which is nowhere after its own position, or is added to the
    scores, or has the documents that do not see one another.
    """
    if isinstance(mask, Documents):
        return within_documents(q, k, v, mask)
    if q.shape[2] == 1:
        return single_query(q, k, v, mask)
    if q.device.type == "cpu" and q.shape[2] == k.shape[2] <= SHORT:
        return blockwise_causal(q, k, v, mask)
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


def separate_documents(starts: Tensor, tokens: Tensor, width: int, dtype: torch.dtype) -> Visible:
    """Return the mask by which `attention` keeps the documents of windows of tokens (B T) apart.

    They begin at `starts` (N+1, int32; the last one is the end) of the windows laid one after another. Heads are `width` wide,
    and queries have `dtype`.
    """
    # A GPU before Ampere may emulate bf16, but has no FlashAttention.
    runs = starts.is_cpu or multiplies_bf16(starts.device)
    if runs and packs_documents(starts.device, dtype, width, tokens.shape[1]):
        # Each batch has another number of documents: compiled code is for any.
        torch._dynamo.maybe_mark_dynamic(starts, 0)
        return Documents(starts, None if starts.is_cpu else packed_kernel())
    mask = document_mask(starts, tokens)
    # A GPU's kernels add a mask of numbers to the scores: made here, it is one tensor for all layers.
    return mask if mask.is_cpu else torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


def packs_documents(device: torch.device, dtype: torch.dtype, width: int, context: int) -> bool:
    """Check whether attention within documents needs no mask on a device: it computes each document by itself.

    On GPUs that is for bf16, as in `takes_groups`.
    """
    if device.type == "cpu":
        return context > SHORT
    return device.type == "cuda" and dtype == torch.bfloat16 and width <= FLASH_WIDTH and width % FLASH_MULTIPLE == 0


def document_mask(starts: Tensor, tokens: Tensor) -> Tensor:
    """Return the mask of causal attention within documents (bool, B 1 T T), which begin at `starts` of tokens (B T)."""
    places = torch.arange(tokens.numel(), dtype=starts.dtype, device=starts.device)
    documents = torch.bucketize(places, starts, right=True).view_as(tokens)
    return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]


def packed_kernel() -> Callable[..., Any]:
    """Return FlashAttention's kernel for packed sequences, causal; PyTorch's compiler is imported with it, a second's work."""
    from torch.nn.attention.varlen import varlen_attn

    # Newer PyTorch wants to be told that key/value heads are shared; the kernel takes them without a word.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    return partial(varlen_attn, window_size=(-1, 0), **grouped)


def within_documents(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Compute causal attention (T = S) within documents."""
    starts, kernel = documents
    if kernel is None:
        # Lengths are numbers of Python: compiled, they would be code for each batch.
        alone: Callable[..., Tensor] = torch.compiler.disable(_one_by_one)  # type: ignore[no-untyped-call]
        return alone(q, k, v, starts)
    batch, heads, longest, width = q.shape  # the longest that a document may be, so that no batch has another kernel
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
    out: Tensor = kernel(q, k, v, starts, starts, longest, longest)
    return out.view(batch, longest, heads, width).transpose(1, 2)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    lengths: list[int] = starts.diff().tolist()
    parts = (torch.split(each.transpose(0, 1).flatten(1, 2)[None], lengths, dim=2) for each in (q, k, v))
    alone = [attention(*document) for document in zip(*parts, strict=True)]
    return torch.cat(alone, dim=2).view(q.shape[1], q.shape[0], *q.shape[2:]).transpose(0, 1)


def kernels_for_any_length(device: torch.device) -> AbstractContextManager[None]:
    """Return a context for prompts of all lengths: without cuDNN's attention, which is planned anew for each of them."""
    if device.type != "cuda":
        return nullcontext()
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(fast)
    return context


def single_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention for a single query (T = 1) that attends to all S positions, or where `mask` allows it.

    The query heads that share a key/value head are grouped in one product, so that keys and values are read only once.
    """
    shared = (q.shape[0], k.shape[1], -1, q.shape[3])
    scores = ((q / math.sqrt(q.shape[3])).reshape(shared) @ k.mT).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1).to(v.dtype) @ v).reshape(q.shape)


def blockwise_causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute causal attention (T = S) in blocks of consecutive queries; `mask` (B 1 T T) may hide earlier keys too.

    Each block uses only the keys up to its last query, so most of the masked scores above the diagonal are never computed.
    """
    rise = max(64, q.shape[2] // 8)
    steps = []
    for start in range(0, q.shape[2], rise):
        rows, seen = slice(start, start + rise), slice(start + rise)
        visible = None if mask is None else mask[:, :, rows, seen]
        steps.append(_step(q[:, :, rows], k[:, :, seen], v[:, :, seen], visible))
    return torch.cat(steps, dim=2)


def _step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute causal attention for one block: the queries (B H T E) are the last T of the S positions of k and v.

    The query heads that share a key/value head are stacked as rows of one matrix.
    """
    batch, heads, positions, width = q.shape
    shared = (batch, k.shape[1], -1, width)
    scores = ((q / math.sqrt(width)).reshape(shared) @ k.mT).view(batch, heads, positions, -1)
    if mask is None:
        mask = torch.ones(positions, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - positions)
    weights = scores.where(mask, -math.inf).softmax(-1)
    return (weights.view(batch, k.shape[1], -1, k.shape[2]) @ v).view(batch, heads, positions, width)

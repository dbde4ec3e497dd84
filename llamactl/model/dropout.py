"""Dropout of single elements, as a function of a seed and the element's place alone.

Which elements are left out follows from a hash, not from a generator: a step that is compiled, recomputed, resumed or shared by
several processes leaves out the same ones, and compiled code stores no mask for the backward pass.
"""

import torch
from torch import Tensor

# The finalizer of a 32-bit hash without bias (Wellons 2018, "Prospecting for Hash Functions"), and the golden ratio before it.
GOLDEN, FIRST, SECOND = (factor - (1 << 32) * (factor >> 31) for factor in (0x9E3779B1, 0x7FEB352D, 0x846CA68B))
SPAN = 1 << 24  # of the numbers of 24 bits, those below a limit leave an element out


def drop_elements(x: Tensor, dropout: Tensor | None, row: int) -> Tensor:
    """Leave out elements of x (B T D), and scale up the others, so that the mean stays; without `dropout` return x.

    `dropout` (B rows 2, int32) has a seed and a limit for each window: of `SPAN` elements, `limit` are left out.
    """
    if dropout is None:
        return x
    seed, limit = dropout[:, row, :, None, None].unbind(1)
    places = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device).view(x.shape[1:])
    kept = (_hash(places * GOLDEN ^ seed) & (SPAN - 1)) >= limit
    return torch.where(kept, x * (SPAN / (SPAN - limit)), 0.0).to(x.dtype)


def _hash(bits: Tensor) -> Tensor:
    """Mix 32 bits; the shifts are those of unsigned numbers."""
    bits = (bits ^ (bits >> 16 & 0xFFFF)) * FIRST
    bits = (bits ^ (bits >> 15 & 0x1FFFF)) * SECOND
    return bits ^ (bits >> 16 & 0xFFFF)

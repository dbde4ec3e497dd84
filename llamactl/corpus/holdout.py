"""Choose the text that is held out for validation: about the requested share of the bytes, whatever the documents are.

A document is held out when the hash of its text is below a threshold, wherever it occurs, so that equal texts are in the same
split and the choice does not depend on pieces or workers. Where that alone would miss the share (few documents, or a few
that are most of the text), long documents are cut instead: each gives its end to validation. Only this module decides that, and
only from the recipe and the inputs.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from llamactl.corpus.splitting import find_boundary

CENSUS_BYTES = 64 << 20  # of text: of this much, all documents are read once before; among more, chance is fair enough
CENSUS_DOCUMENTS = 1_000_000
FAIR = (0.6, 1.6)  # what the share may be of the one that was asked for
LONG = 2  # documents that make up more than the wanted bytes divided by this are cut
SHORTEST_CUT = 200  # bytes; what is shorter is not worth two documents
SHORTEST_LINE = 16  # bytes of a text that is cut though it is shorter, because there is no other
SMALLEST = 2_000  # bytes that are held out of a source that is large enough, however small the share


@dataclass(frozen=True)
class Holdout:
    """The rule by which a document, or its end, is held out."""

    share: float  # of all bytes
    threshold: float  # of the hashes, from 0 to 1
    first: bool = True  # the very first document is held out too
    longest: int = 0  # bytes; longer documents give `share` of their end; 0: none does
    cut: frozenset[int] = field(default=frozenset())  # hashes of documents that give it, whatever their size
    kept: frozenset[int] = field(default=frozenset())  # hashes of documents that are never held out

    @property
    def digest(self) -> str:
        """Hash the rule: equal rules have equal digests in every process."""
        fields = (self.share, self.threshold, self.first, self.longest, sorted(self.cut), sorted(self.kept))
        return hashlib.sha256(repr(fields).encode()).hexdigest()

    def holds(self, rank: int) -> bool:
        """Check whether the document with a hash (64 bits) is held out in full."""
        return rank / 2**64 < self.threshold and rank not in self.kept

    def cuts(self, rank: int, size: int) -> bool:
        """Check whether the end of a document with this hash and this size in bytes is held out."""
        return rank in self.cut or (0 < self.longest < size)


def holdout_by_hash(share: float) -> Holdout:
    """Return the rule of a large collection: by hash alone, and the very first document."""
    return Holdout(share, share)


def cut_end(text: str, share: float) -> tuple[str, str]:
    """Split a text into its beginning and an end of about `share` of it, at a good boundary."""
    size = max(1, round(len(text) * share))
    place = len(text) - size
    # The window for the boundary reaches further forward than back, so the end gets smaller rather than larger.
    end = find_boundary(text, place - size // 20, place + size // 4) if size > 20 else place
    return text[:end], text[end:]


def plan_holdout(documents: Iterator[tuple[int, int]], share: float, size: int, once: bool) -> Holdout:
    """Choose the rule for a source from its documents as (hash, bytes).

    `size` is its stored bytes (0: not known); `once` tells that copies count once, as duplicates are removed.
    """
    census = _take_census(documents) if 0 < size <= CENSUS_BYTES else None
    if census is None:
        plain = holdout_by_hash(share)
        return Holdout(share, share, longest=int(size * share / LONG)) if size else plain
    ranks, sizes = census
    return _decide(ranks, sizes, share, once) if len(ranks) else holdout_by_hash(share)


def _take_census(documents: Iterator[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return hashes and sizes of all documents; None when there are too many."""
    ranks: list[int] = []
    sizes: list[int] = []
    total = 0
    for rank, size in documents:
        ranks.append(rank)
        sizes.append(size)
        total += size
        # A packed source unpacks to more than its stored size: give up before memory grows.
        if total > 2 * CENSUS_BYTES or len(ranks) > CENSUS_DOCUMENTS:
            return None
    return np.array(ranks, dtype=np.uint64), np.array(sizes, dtype=np.int64)


def _decide(ranks: np.ndarray, sizes: np.ndarray, share: float, once: bool) -> Holdout:
    texts, first, counts = np.unique(ranks, return_index=True, return_counts=True)
    size = sizes[first]
    weights = size if once else size * counts  # bytes that each text makes up
    total = int(weights.sum())
    # The same comparison as in Holdout.holds.
    below = texts.astype(np.float64) / 2**64 < share
    is_first = texts == ranks[0]
    plain = int(weights[below | is_first].sum())
    no_leak = bool(below[is_first][0]) or once or int(counts[is_first][0]) == 1  # no copy of the first one is trained on
    # The plain rule is kept where it comes near enough: it needs no list of hashes, and has no text cut.
    if no_leak and FAIR[0] * share * total <= plain <= FAIR[1] * share * total:
        return holdout_by_hash(share)
    # A small share is raised to SMALLEST bytes, or to a tenth of a short text.
    target = max(share * total, min(total / 10, SMALLEST))
    large = weights > target / LONG
    cut = large & (size >= SHORTEST_CUT)
    part = target / total
    threshold = _find_threshold(texts[~large], weights[~large], target - part * float(weights[cut].sum()))
    kept = texts[large & ~cut]
    if not cut.any() and not threshold and len(texts) == 1:
        cut = (size >= SHORTEST_LINE) & (total >= SHORTEST_CUT)  # the same line again and again
        kept = texts[~cut]
    elif not cut.any() and not threshold:
        # Few and short: one of them, whole, is better than none.
        smallest = int(np.argmin(weights))
        threshold, kept = float(texts[smallest]) / 2**64 + 2**-52, np.delete(texts, smallest)
    return Holdout(part, threshold, first=False, cut=frozenset(texts[cut].tolist()), kept=frozenset(kept.tolist()))


def _find_threshold(texts: np.ndarray, weights: np.ndarray, target: float) -> float:
    """Return the hash, from 0 to 1, below which texts (sorted) add up to the target bytes as nearly as they can."""
    # Half of a text's own weight: it is included where that brings the sum nearer to the target.
    before = np.cumsum(weights) - weights / 2
    number = int(np.searchsorted(before, target, side="right"))
    if not number:
        return 0.0
    last = int(texts[number - 1])
    following = int(texts[number]) if number < len(texts) else 2**64
    # Halfway between two hashes, so that rounding to a float moves no text to the other side.
    return (last + following) / 2 / 2**64

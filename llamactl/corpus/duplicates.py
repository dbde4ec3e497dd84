"""Exact duplicates over a whole source: a first reading hashes every document, so that a second can leave the later out.

A document is known by 64 bits of its hash, which costs 8 bytes of memory for each: among OpenWebText's 8 million
the chance that two that differ are taken for the same is one in half a million.
"""

import numpy as np

from llamactl import durable
from llamactl.corpus.documents import SPLITS, documents
from llamactl.corpus.pieces import Job


def scan(job: Job) -> np.ndarray:
    """The hashes of a piece's documents (uint64)."""
    found = (document.rank for document in documents(job.source, job.piece, job.recipe) if document.place in SPLITS)
    return np.fromiter(found, dtype=np.uint64)


def mark(jobs: list[Job], hashes: list[np.ndarray]) -> None:
    """Store for each piece which of its documents stand in it, or in a piece before it, already (bool)."""
    twins = np.ones(sum(map(len, hashes)), dtype=bool)
    twins[np.unique(np.concatenate(hashes), return_index=True)[1]] = False
    ends = np.cumsum([len(piece) for piece in hashes])
    for job, marks in zip(jobs, np.split(twins, ends[:-1]), strict=True):
        with durable.writing(job.folder.twins(job.piece)) as file:
            np.save(file, marks)

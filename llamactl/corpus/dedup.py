"""Find exact duplicates in a whole source: a first pass hashes every document, so that a second one can skip the later copies.

A document is identified by a 64-bit hash, which takes 8 bytes of memory for each. Among OpenWebText's 8 million documents, the
chance that two different ones have the same hash is one in half a million.
"""

from dataclasses import replace

import numpy as np

from llamactl.corpus.documents import SPLITS, read_piece
from llamactl.corpus.pieces import Job, marks_digest
from llamactl.storage import atomic


def hash_documents(job: Job) -> np.ndarray:
    """Return the hashes of a piece's documents (uint64), in reading order."""
    hashes = (document.rank for document in read_piece(job.source, job.piece, job.recipe) if document.place in SPLITS)
    return np.fromiter(hashes, dtype=np.uint64)


def mark_duplicates(jobs: list[Job], hashes: list[np.ndarray]) -> list[Job]:
    """Store for each piece which of its documents occurred before, in it or in an earlier piece (bool).

    The jobs that are returned contain a digest of the marks, as the marks depend on other pieces too.
    """
    duplicate = np.ones(sum(map(len, hashes)), dtype=bool)
    # np.unique returns the first index of each hash: that copy is kept, all others stay marked.
    duplicate[np.unique(np.concatenate(hashes), return_index=True)[1]] = False
    ends = np.cumsum([len(piece) for piece in hashes])
    for job, marks in zip(jobs, np.split(duplicate, ends[:-1]), strict=True):
        with atomic.atomic_write(job.folder.duplicates_path(job.piece)) as file:
            np.save(file, marks)
    return [replace(job, duplicates=marks_digest(job.folder, job.piece)) for job in jobs]

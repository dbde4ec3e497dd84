"""Documents begin after the token that ends one or, where a tokenizer has it, at the one that begins one."""

import numpy as np
import pytest

from llamactl.corpus.targets import EVERY_TARGET, WindowRule

END, BEGIN = 0, 1


def numbered(inputs: np.ndarray, begin: int | None) -> list[list[int]]:
    """The document of each input within its window, counted token by token."""
    found = []
    for row in inputs.tolist():
        documents, number = [], 0
        for place, token in enumerate(row):
            if place and (token == begin or (begin is None and row[place - 1] == END)):
                number += 1
            documents.append(number)
        found.append(documents)
    return found


@pytest.mark.parametrize("begin", [None, BEGIN])
def test_documents_begin_in_each_window_and_at_their_tokens(begin: int | None) -> None:
    rng = np.random.default_rng(0)
    for width in (1, 2, 7, 40):
        inputs = rng.integers(0, 5, (6, width))
        starts = WindowRule(separate=True, begin=begin, end=END).documents(inputs)
        assert starts is not None
        assert starts.dtype == np.int32
        assert (starts[0], starts[-1]) == (0, inputs.size)
        assert (np.diff(starts) > 0).all()
        places = np.searchsorted(starts, np.arange(inputs.size), side="right").reshape(inputs.shape)
        assert (places - places[:, :1]).tolist() == numbered(inputs, begin)


def test_documents_are_not_looked_for_where_they_see_one_another() -> None:
    assert EVERY_TARGET.documents(np.zeros((2, 8), dtype=np.int64)) is None

"""Mixtures of sources: the shares are exact to a document, nothing is repeated, and the bytes are the same in every run."""

import json
import shutil
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, Recipe
from llamactl.corpus.engines import local_engine
from llamactl.corpus.mixture import open_mixture, order_by_scarcity, read_weights
from llamactl.corpus.prepare import Sealed, prepare_dataset
from llamactl.corpus.sources import Reading, Source
from llamactl.corpus.verify import check_dataset
from llamactl.errors import DataError, UsageError
from tests.cli.inline import type_in

DOCUMENT = 100  # tokens of each, of bytes


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three sources of 600, 900 and 3,000 documents; the last one has its text in a column of another name."""
    folder = tmp_path / "texts"
    for name, documents in (("a", 600), ("b", 900)):
        (folder / name).mkdir(parents=True)
        for number in range(documents):
            (folder / name / f"{number:04d}.txt").write_text(f"{name} {number:04d} ".ljust(DOCUMENT - 1, name))
    rows = [{"body": f"c {number:04d} ".ljust(DOCUMENT - 1, "c"), "n": number} for number in range(3000)]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def make(folder: Path, source: Source, weights: str, workers: int = 1, **settings: object) -> DatasetInfo:
    recipe = Recipe.model_validate(
        {
            "source": "mixed",
            "inputs": source.inputs,
            "tokenizer": "bytes",
            "text_column": "",
            "val_fraction": 0.1,
            "weights": weights,
            **settings,
        }
    )
    *_, last = prepare_dataset(source, recipe, DatasetDir(folder), local_engine(workers))
    assert isinstance(last, Sealed)
    assert not [problem for _, problem in check_dataset(DatasetDir(folder)) if problem]
    return last.info


def tokens_of_each(info: DatasetInfo, source: Source) -> list[int]:
    return [sum(shard.tokens for shard in info.shards if shard.piece in part.piece_numbers) for part in source.mixed]


@pytest.mark.parametrize(
    ("words", "weights", "expected"),
    [
        ("a b", "1,1", [60_000, 60_000]),  # a is used up
        ("b a", "1,1", [60_000, 60_000]),
        ("a b", "0.1,0.9", [10_000, 90_000]),  # b is used up
        ("a c.jsonl", "3,7", [60_000, 140_000]),
        ("a b c.jsonl", "1,1,2", [60_000, 60_000, 120_000]),
        ("c.jsonl b a", "0.98,0.01,0.01", [300_000, 3_000, 3_000]),
    ],
)
def test_the_shares_are_exact(words: str, weights: str, expected: list[int], texts: Path) -> None:
    source = open_mixture([str(texts / word) for word in words.split()], weights, Reading())
    found = tokens_of_each(make(texts / "data", source, source.weights), source)
    assert all(0 <= most - tokens < DOCUMENT + 1 for most, tokens in zip(expected, found, strict=True)), found


def test_max_tokens_is_of_the_mixture(texts: Path) -> None:
    source = open_mixture([str(texts / "a"), str(texts / "b")], "1,3", Reading())
    assert tokens_of_each(make(texts / "data", source, source.weights, max_tokens=40_000), source) == [10_000, 30_000]


def test_both_splits_are_mixed(texts: Path) -> None:
    source = open_mixture([str(texts / "a"), str(texts / "b")], "1,2", Reading())
    info = make(texts / "data", source, source.weights)
    for part, share in zip(source.mixed, (1 / 3, 2 / 3), strict=True):
        held_out = sum(s.tokens for s in info.shards if s.split == "val" and s.piece in part.piece_numbers)
        assert held_out == pytest.approx(info.total("val", "tokens") * share, rel=0.3)
        assert info.total("val", "tokens") == pytest.approx(13_500, rel=0.25)


def test_every_way_of_making_it_gives_the_same_bytes(texts: Path) -> None:
    words = [str(texts / word) for word in ("c.jsonl", "b", "a")]
    source = open_mixture(words, "5,3,2", Reading())
    digests = {
        make(texts / f"data{workers}{dedup}", source, source.weights, workers, dedup=dedup).shards
        for workers, dedup in ((1, False), (2, False), (1, True))
    }
    assert len(digests) == 1


def test_unreadable_documents_of_all_sources_count_together(texts: Path) -> None:
    for name in ("d.jsonl", "e.jsonl"):
        rows = [json.dumps({"text": f"{name} {number} of its own"}) for number in range(200)]
        (texts / name).write_text("\n".join(["no JSON", *rows]))
    source = open_mixture([str(texts / "d.jsonl"), str(texts / "e.jsonl")], "1,1", Reading())
    assert make(texts / "two", source, source.weights, max_bad_docs=2).skipped == {"unreadable": 2}
    with pytest.raises(DataError, match="2 documents can't be read"):
        make(texts / "one", source, source.weights, max_bad_docs=1)


def test_an_interrupted_mixture_resumes(texts: Path) -> None:
    source = open_mixture([str(texts / "c.jsonl"), str(texts / "a")], "1,1", Reading())
    whole = make(texts / "whole", source, source.weights)
    recipe = whole.recipe
    for events in range(1, 5):
        folder = DatasetDir(texts / f"part{events}")
        list(islice(prepare_dataset(source, recipe, folder, local_engine(1)), events))
        assert make(folder.path, source, source.weights).digest == whole.digest


def test_equal_documents_of_two_sources_are_kept_once_with_dedup(texts: Path) -> None:
    shutil.copytree(texts / "a", texts / "a2")
    source = open_mixture([str(texts / "a"), str(texts / "b"), str(texts / "a2")], "1,1,1e-4", Reading())
    with pytest.raises(DataError, match="There is no text in a2"):
        make(texts / "data", source, source.weights, dedup=True)
    (texts / "a2" / "new.txt").write_text("new".ljust(DOCUMENT - 1))
    (texts / "a2" / "newer.txt").write_text("newer".ljust(DOCUMENT - 1))
    source = open_mixture([str(texts / "a"), str(texts / "b"), str(texts / "a2")], "1,1,1e-4", Reading())
    info = make(texts / "other", source, source.weights, dedup=True)
    assert tokens_of_each(info, source) == [60_000, 60_000, 0]  # the share of a2 is less than one document
    assert info.skipped["duplicate"] > 0


def test_weights_of_any_scale_are_shares() -> None:
    assert read_weights("0.7, 0.3", 2) == read_weights("7,3", 2) == (Fraction(7, 10), Fraction(3, 10))
    assert sum(read_weights("1,2,3e2,1/7", 4)) == 1


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,2,3", "a,b", "1,-1", "0,1", "nan,1", "inf,1", "1,,1", "1/0,1", "1;1", "1e-400,1", "1e5000,1", "1e999999999,1"],
)
def test_other_weights_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--weights"):
        read_weights(text, 2)


def test_the_scarcest_comes_first(texts: Path) -> None:
    words = [str(texts / word) for word in ("c.jsonl", "b", "a")]
    order = order_by_scarcity(open_mixture(words, "1,1,1", Reading()))
    assert [part.name for part in order] == ["a", "b", "c"]


def test_the_command_says_what_it_mixed(texts: Path, home: Path) -> None:
    words = ("prepare", str(texts / "a"), str(texts / "c.jsonl"), "--weights", "1,3", "--tokenizer", "bytes")
    assert "a 25.0% (60k tokens), c 75.0% (180k tokens)" in type_in(*words).err
    assert "was complete already" in type_in(*words).err
    assert "mixed 1/4,3/4" in type_in("data", "show", "a-c").err
    other = type_in(*words[:4], "2,3", *words[5:])
    assert other.code == 3
    assert "weights" in other.err
    shared = type_in(*words, "--name", "other", "--piece", "1/2")
    assert shared.code == 2
    assert "one machine" in shared.err

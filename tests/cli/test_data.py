"""llamactl data, as people type it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.cli.data import colour_tokens
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.runs.run_dir import RunDir
from llamactl.storage.locks import hold_lock
from llamactl.tokenizer import bpe
from tests.cli.inline import type_in
from tests.conftest import make_dataset

Configured = Callable[..., tuple[Config, World]]


def test_from_nothing_to_nothing(home: Path, corpus: Path, configured: Configured) -> None:
    assert "llamactl prepare sample" in type_in("data", "list").err
    info = make_dataset(home / "data" / "addresses", corpus).info()
    assert "addresses  complete" in type_in("data", "list").out
    (row,) = map(json.loads, type_in("data", "list", "--json").out.splitlines())
    assert row["tokens"] == info.total("train", "tokens")
    shown = type_in("data", "show")
    assert "llamactl train --data addresses" in shown.err
    assert "documents repeat an earlier one" in shown.err
    record = json.loads(type_in("data", "show", "addresses", "--json").out)
    assert record["statistics"]["documents"] == row["documents"] == 80
    assert record["info"]["digest"] == info.digest
    run = RunDir.from_name("a")
    run.path.mkdir(parents=True)
    run.start(configured(data={"name": "addresses"})[0], {}, False)
    refused = type_in("data", "remove", "addresses")
    assert refused.code == 2
    assert "1 run was trained on it" in refused.err
    with hold_lock(run.lock_path):
        assert type_in("data", "remove", "addresses", "--yes").code == 7
    assert "freed" in type_in("data", "remove", "addresses", "--yes").err
    assert type_in("data", "remove", "addresses", "--yes").code == 3
    assert type_in("data", "show", "addresses").code == 3


@pytest.mark.parametrize("words", [("data", "remove", ""), ("runs", "remove", "")])
def test_an_empty_name_removes_nothing(words: tuple[str, ...], home: Path, corpus: Path, configured: Configured) -> None:
    dataset, run = make_dataset(home / "data" / "addresses", corpus, tokenizer="bytes"), RunDir.from_name("a")
    run.path.mkdir(parents=True)
    run.start(configured(data={"name": "addresses"})[0], {}, False)
    for options in ([], ["--yes"]):
        refused = type_in(*words, *options)
        assert refused.code == 2
        assert "The name is empty" in refused.err
    assert dataset.info_path.exists()
    assert run.config_path.exists()


@pytest.mark.parametrize("text", ["a b\nc\x1b[2J", "日本語 🙂 é", ""])
def test_colours_change_nothing_but_control_characters(text: str, dataset: Dataset) -> None:
    for tokenizer in (dataset.tokenizer, bpe.byte_tokenizer()):
        coloured = colour_tokens(tokenizer, tokenizer.encode(text))
        assert coloured.plain.replace("⏎\n", "\n").replace("\\x1b", "\x1b") == text
        assert all(one.style != other.style for one, other in zip(coloured.spans, coloured.spans[1:], strict=False))


def test_a_character_that_is_cut_in_two_is_shown_as_such(dataset: Dataset) -> None:
    tokenizer = bpe.byte_tokenizer()
    assert colour_tokens(tokenizer, tokenizer.encode("é")[:1]).plain == "\N{REPLACEMENT CHARACTER}"

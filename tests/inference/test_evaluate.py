"""Losses with their errors: the same as training's, the known ones of a uniform model, whatever the tokenizer."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from llamactl.config.schema import Config, ModelConfig
from llamactl.corpus.batches import Windows
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.inference.evaluate import Ratio, evaluate_streams, token_stream
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.tokenizer import bpe
from llamactl.training.build import build_objective
from llamactl.training.validation import validate_model

Configured = Callable[..., tuple[Config, World]]


def model(vocab_size: int, context: int = 32, uniform: bool = False) -> Llama:
    made = Llama(
        ModelConfig(n_layers=1, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, context=context, vocab_size=vocab_size)
    )
    if uniform:
        nn.init.zeros_(made.lm_head.weight)
    return made


def test_it_is_trainings_validation_loss(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"eval_tokens": 10**9})
    made = build_objective(config, world).model
    expected = validate_model(NextToken(made), dataset, config, world)
    assert expected is not None
    found = evaluate_streams(made, dataset.tokenizer, dataset.val, rests=False)
    assert (found.loss, found.bits_per_byte) == pytest.approx(expected[:2], abs=1e-6)
    assert found.tokens == expected.tokens == len(Windows(dataset.val, 32)) * 32
    assert np.mean(found.by_position) == pytest.approx(found.loss, abs=1e-6)


def test_a_uniform_model_has_its_known_values(documents: list[str]) -> None:
    """ln V a token; over bytes, as many bits as a byte and its share of the end-of-text token ask for."""
    raw = bpe.byte_tokenizer()
    found = evaluate_streams(model(257, uniform=True), raw, (token_stream(raw, documents[:5]),), rests=True)
    assert found.loss == pytest.approx(math.log(257), abs=1e-5)
    assert found.loss_error == pytest.approx(0, abs=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(257), abs=1e-5)
    assert (found.documents, found.bytes) == (5, sum(len(text.encode()) for text in documents[:5]))
    assert found.perplexity == pytest.approx(257, rel=1e-4)


def test_bits_per_byte_are_of_the_text_whatever_its_tokens(documents: list[str]) -> None:
    """A model that gives each byte of text one bit has one bit per byte, through bytes as through BPE."""
    learned = bpe.train_bpe(iter(documents), 400)
    for tokenizer in (bpe.byte_tokenizer(), learned, bpe.gpt2_tokenizer()):
        ids = token_stream(tokenizer, documents[:3])
        made = model(tokenizer.vocab_size)
        lengths = torch.from_numpy(tokenizer.byte_lengths)

        def per_token(
            _: object, inputs: torch.Tensor, targets: torch.Tensor, documents: None, lengths: torch.Tensor = lengths
        ) -> torch.Tensor:
            return lengths[targets] * math.log(2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NextToken, "per_token", per_token)
            found = evaluate_streams(made, tokenizer, (ids,), rests=True)
        assert found.bits_per_byte == pytest.approx(1.0)
        assert found.bytes == sum(len(text.encode()) for text in documents[:3])
        assert found.documents == 3


def test_what_is_left_at_the_end_counts_when_asked_for(documents: list[str]) -> None:
    raw, made = bpe.byte_tokenizer(), model(257)
    ids = token_stream(raw, ["short", documents[0][:100]])
    assert evaluate_streams(made, raw, (ids,), rests=True).tokens == len(ids) - 1
    assert evaluate_streams(made, raw, (ids,), rests=False).tokens == (len(ids) - 1) // 32 * 32
    assert evaluate_streams(made, raw, (token_stream(raw, ["x"]),), rests=True).tokens == 2


def test_the_error_of_a_ratio_is_that_of_resampled_documents() -> None:
    """Held against the bootstrap, which needs no formula."""
    chance = np.random.default_rng(0)
    sizes = chance.integers(5, 200, 300)
    sums = sizes * chance.normal(3, 0.5, 300)
    ratio = Ratio()
    for start in range(0, 300, 50):  # in parts, as windows come
        part = np.arange(start, start + 50)
        ratio.add(part, sums[part] / 2, sizes[part] / 2)
        ratio.add(part, sums[part] / 2, sizes[part] / 2)
    draws = chance.integers(0, 300, (2000, 300))
    bootstrap = (sums[draws].sum(1) / sizes[draws].sum(1)).std()
    assert ratio.value == pytest.approx(sums.sum() / sizes.sum())
    assert ratio.error == pytest.approx(bootstrap, rel=0.1)
    assert ratio.documents == 300


def test_one_document_has_no_error() -> None:
    ratio = Ratio()
    ratio.add(np.array([0]), np.array([3.0]), np.array([2.0]))
    assert (ratio.value, ratio.error) == (1.5, math.inf)


def test_files_are_read_as_documents(home: Path, documents: list[str]) -> None:
    from llamactl.cli.eval_text import read_documents

    (home / "a.txt").write_text(documents[0])
    (home / "b.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "two"}\n')
    assert list(read_documents([str(home / "b.jsonl")], "text")) == ["one", "two"]
    assert "".join(read_documents([str(home / "a.txt")], "text")) == documents[0]

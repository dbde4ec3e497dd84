"""The loss to expect: what it was fitted to, what repetition and easy text do to it, and its bounds."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.compression import read_pieces
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.planning.loss import COMPRESSED, UNCERTAINTY, predict_loss
from tests.conftest import make_dataset

Configured = Callable[..., tuple[Config, World]]

TINY = build_config([preset_settings("tiny"), {"model": {"vocab_size": 4096}}]).model
GPT2 = build_config([preset_settings("150m"), {"model": {"vocab_size": 50_304}}]).model

# Bits per byte after so many tokens: of ours on mixed English (docs/recipe.md), then Muon on FineWeb and nanoGPT's GPT-2 on
# OpenWebText, carried over to OpenWebText's 4.41 bytes a token.
MEASURED = [
    (TINY, 250_000, 2.192),
    (TINY, 1_000_000, 1.891),
    (TINY, 7_500_000, 1.579),
    (GPT2, 1.7e9, 1.011),
    (GPT2, 295e9, 0.932),
]


@pytest.mark.parametrize(("model", "tokens", "bits"), MEASURED)
def test_runs_that_were_measured_are_within_its_range(
    model: object, tokens: float, bits: float, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamactl.corpus.dataset.measure_compression", lambda *_: COMPRESSED)
    assert isinstance(model, type(TINY))
    assert predict_loss(model, int(tokens), 0.5, replace(dataset)).bits_per_byte == pytest.approx(bits, rel=UNCERTAINTY)


@pytest.mark.slow
def test_a_much_smaller_model_comes_out_near_it(configured: Configured, dataset: Dataset) -> None:
    """36 thousand parameters: a shape and a text that nothing was fitted to, a quarter of the smallest that was."""
    from llamactl.runs.run_dir import RunDir
    from llamactl.training.events import Validated
    from llamactl.training.trainer import train_run

    budget = {"tokens": 200_000, "tokens_per_step": 1024, "eval_every": 1000, "eval_tokens": 30_000, "save_every": 1000}
    config, world = configured(train=budget, model={"context": 128})
    expected = predict_loss(config.model, 200_000, 1.0, dataset)
    events = train_run(config, dataset, RunDir.from_name("a"), world, rate=1.0)
    losses = [event.loss for event in events if isinstance(event, Validated)]
    assert losses[-1] == pytest.approx(expected.loss, rel=0.15)


def test_reading_again_teaches_less_than_reading_more(dataset: Dataset) -> None:
    more, again = predict_loss(TINY, 10**7, 1.0, dataset).loss, predict_loss(TINY, 10**7, 40.0, dataset).loss
    once = predict_loss(TINY, 10**7 // 40, 1.0, dataset).loss
    assert more < again < once


def test_text_that_is_easy_to_compress_is_easy_to_learn(home: Path, dataset: Dataset) -> None:
    (home / "easy").mkdir()
    for number in range(40):
        (home / "easy" / f"{number}.txt").write_text("The same words again and again. " * 200 + str(number))
    easy = make_dataset(home / "data" / "easy", home / "easy", "bytes").open()
    assert easy.compressed_bits_per_byte < 0.2 * dataset.compressed_bits_per_byte
    assert predict_loss(TINY, 10**6, 1.0, easy).bits_per_byte < predict_loss(TINY, 10**6, 1.0, dataset).bits_per_byte / 3
    assert predict_loss(TINY, 1, 1.0, dataset).high == pytest.approx(math.log(dataset.info.vocab_size))


def test_pieces_come_from_everywhere(dataset: Dataset) -> None:
    pieces = read_pieces(dataset.train, dataset.tokenizer)
    assert sum(map(len, pieces)) == pytest.approx(dataset.info.total("train", "text_bytes"), rel=0.1)
    assert len(set(pieces)) == len(pieces)

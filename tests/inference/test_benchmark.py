"""What decoding is held against: bytes by hand, and figures that make sense."""

import pytest
import torch

from llamactl.config.parameters import num_params
from llamactl.config.schema import ModelConfig
from llamactl.inference.benchmark import benchmark_decoding, reading_rate, step_bytes
from llamactl.model.convert import convert_weights
from llamactl.model.llama import Llama

SHAPE = ModelConfig(n_layers=2, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, context=64, vocab_size=256)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_the_weights_and_the_cache(tied: bool) -> None:
    config = SHAPE.model_copy(update={"tie_embeddings": tied})
    weights = 4 * (num_params(config) - (0 if tied else 256 * 64))
    cache = 4 * 2 * 2 * 2 * 16  # fp32, keys and values, layers, heads, width
    assert step_bytes(Llama(config), 3, 10) == weights + 3 * 10 * cache


def test_int8_reads_a_quarter() -> None:
    model = Llama(SHAPE)
    whole = step_bytes(model, 1, 0)
    assert 0.25 < step_bytes(convert_weights(model, "int8"), 1, 0) / whole < 0.3


def test_decoding_is_timed() -> None:
    assert reading_rate(torch.device("cpu"), tries=1) > 1e8
    found = benchmark_decoding(Llama(SHAPE), 2, prompt=8, new=12)
    assert found.batch == 2
    assert found.tokens_per_second > 10
    assert found.read_rate == pytest.approx(found.tokens_per_second / 2 * step_bytes(Llama(SHAPE), 2, 8 + 6))
    assert found.first > 0


def test_a_step_reads_no_more_than_the_context() -> None:
    found = benchmark_decoding(Llama(SHAPE), 1, prompt=1_000_000, new=100)
    assert found.read_rate == pytest.approx(found.tokens_per_second * step_bytes(Llama(SHAPE), 1, SHAPE.context))

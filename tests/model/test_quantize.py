"""Weights of one byte: rounded to the nearest step, and near enough in what they say."""

import copy

import pytest
import torch

from llamactl.config.schema import ModelConfig
from llamactl.model.convert import FORMATS, PackedLinear, convert_weights, pack_if_faster
from llamactl.model.llama import Llama
from llamactl.model.quantize import Int8Linear

SHAPE = ModelConfig(n_layers=2, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, context=32, vocab_size=256)


def test_each_weight_is_at_most_half_a_step_away() -> None:
    linear = torch.nn.Linear(64, 48, bias=False)
    rounded = Int8Linear(linear)
    back = rounded.rounded.float() * rounded.scales[:, None]
    assert ((back - linear.weight).abs() <= 0.5001 * rounded.scales[:, None]).all()
    assert rounded.rounded.abs().amax(-1).eq(127).all()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 5, 64)])
def test_products_are_those_of_the_rounded_weights(shape: tuple[int, ...]) -> None:
    linear = torch.nn.Linear(64, 48, bias=False)
    rounded, x = Int8Linear(linear), torch.randn(shape)
    back = rounded.rounded.float() * rounded.scales[:, None]
    assert torch.allclose(rounded(x), x @ back.mT, atol=0.03)  # what comes in is bf16
    assert torch.allclose(rounded(x), linear(x), atol=0.05)


def test_many_rows_at_once_are_as_few() -> None:
    rounded, x = Int8Linear(torch.nn.Linear(64, 48, bias=False)), torch.randn(40, 64)
    assert torch.allclose(rounded(x), torch.cat([rounded(row[None]) for row in x]), atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_are_the_same(dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(64, 48, bias=False, dtype=dtype)
    packed = pack_if_faster([linear])[0]
    if not isinstance(packed, PackedLinear):
        pytest.skip("oneDNN packs no such weights on this processor")
    for shape in ((1, 64), (16, 64), (2, 5, 64)):
        x = torch.randn(shape, dtype=dtype)
        assert torch.allclose(packed(x), linear(x), atol=1e-5 if dtype == torch.float32 else 0.03)


def test_where_packing_is_missing_the_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    model = convert_weights(Llama(SHAPE), "f32")
    assert isinstance(model.lm_head, torch.nn.Linear)


def test_rows_of_zeros_stay() -> None:
    linear = torch.nn.Linear(64, 4, bias=False)
    torch.nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.randn(2, 64)), torch.zeros(2, 4))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_says_nearly_the_same(kind: str, tied: bool) -> None:
    model = Llama(SHAPE.model_copy(update={"tie_embeddings": tied})).eval()
    tokens = torch.randint(0, 256, (2, 20))
    with torch.inference_mode():
        usual = model(tokens).log_softmax(-1)
        found = convert_weights(copy.deepcopy(model), kind)(tokens).float().log_softmax(-1)
    assert (usual - found).abs().max() < {"f32": 1e-5, "bf16": 0.05, "int8": 0.05}[kind]

"""Weights of a byte or half of one: rounded to the nearest step, and near enough in what they say."""

import copy

import pytest
import torch
from torch.nn import functional as F

from llamactl.config.schema import ModelConfig
from llamactl.model.convert import FORMATS, PackedLinear, convert_weights, pack_if_faster
from llamactl.model.llama import Llama
from llamactl.model.quantize import Int4Linear, Int8Linear

SHAPE = ModelConfig(n_layers=2, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, context=32, vocab_size=256)


def test_each_weight_is_at_most_half_a_step_away() -> None:
    linear = torch.nn.Linear(64, 48, bias=False)
    rounded = Int8Linear(linear)
    back = rounded.rounded.float() * rounded.scales[:, None]
    assert ((back - linear.weight).abs() <= 0.5001 * rounded.scales[:, None]).all()
    assert rounded.rounded.abs().amax(-1).eq(127).all()


@pytest.mark.parametrize("inputs", [64, 1, 31, 33, 100])
def test_int4_weights_are_near_and_products_are_theirs(inputs: int) -> None:
    linear, x = torch.nn.Linear(inputs, 48), torch.randn(3, 5, inputs)
    rounded = Int4Linear(linear)
    back = rounded.dequantize()
    groups = F.pad(linear.weight.detach(), (0, -inputs % 32)).view(48, -1, 32)
    largest = groups.abs().amax(-1, keepdim=True).expand_as(groups).flatten(1)[:, :inputs]
    # Eight levels to each side: half a step, and one more where the side without the extreme has one level fewer.
    assert ((back - linear.weight).abs() <= 0.3 * largest).all()
    assert (back - linear.weight).square().mean() < 0.008 * linear.weight.square().mean()
    assert torch.allclose(rounded(x), F.linear(x, back, linear.bias), atol=1e-5)
    assert rounded.packed.nbytes + rounded.scales.nbytes == 48 * -(-inputs // 32) * 18


def test_int4_scales_have_the_least_error() -> None:
    weight = torch.randn(200, 64)
    linear = torch.nn.Linear(64, 200, bias=False)
    linear.weight = torch.nn.Parameter(weight)
    groups = weight.view(200, 2, 32)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    plain = (groups / extreme).round().clamp(-8, 7) * extreme  # as llama.cpp's Q4_0 does it
    error = (Int4Linear(linear).dequantize() - weight).square().mean()
    assert error < 0.95 * (plain.flatten(1) - weight).square().mean()


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
    for kind in (Int8Linear, Int4Linear):
        assert torch.equal(kind(linear)(torch.randn(2, 64)), torch.zeros(2, 4))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_says_nearly_the_same(kind: str, tied: bool) -> None:
    model = Llama(SHAPE.model_copy(update={"tie_embeddings": tied})).eval()
    tokens = torch.randint(0, 256, (2, 20))
    with torch.inference_mode():
        usual = model(tokens).log_softmax(-1)
        found = convert_weights(copy.deepcopy(model), kind)(tokens).float().log_softmax(-1)
    assert (usual - found).abs().max() < {"f32": 1e-5, "bf16": 0.05, "int8": 0.05, "int4": 0.4}[kind]

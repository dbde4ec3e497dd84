"""The model: its size, its causality, and the notebook's mistakes, which must not come back."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from llamactl.config.parameters import num_embedding_params, num_params
from llamactl.config.presets import PRESETS
from llamactl.config.schema import ModelConfig, build_config, preset_settings
from llamactl.hardware.device import Precision
from llamactl.model.llama import Block, Llama, RMSNorm, apply_rotary, project_together, rotary_table
from llamactl.model.objective import NextToken

SMALL = ModelConfig(n_layers=3, dim=48, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, context=64, vocab_size=128)
GPT2_VOCABULARY = 50_304


@pytest.fixture
def model() -> Llama:
    return Llama(SMALL)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (2, SMALL.context))


PARAMETERS = {
    "tiny": 1_574_592 + 50_304 * 192,
    "10m": 9_442_176 + 50_304 * 384,
    "50m": 23_601_664 + 50_304 * 512,
    "150m": 152_783_616,
    "350m": 386_188_288,
    "1b": 1_288_275_968,
    "7b": 7_391_678_464,
    "notebook": 102_426_400 + 2 * 50_304 * 800,
}


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_its_number_of_parameters(name: str) -> None:
    config = build_config([preset_settings(name)]).model.model_copy(update={"vocab_size": GPT2_VOCABULARY})
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in Llama(config).parameters())
    assert built == num_params(config) == PARAMETERS[name]


def test_tiny_is_about_two_million_with_the_samples_vocabulary() -> None:
    config = build_config([preset_settings("tiny")]).model.model_copy(update={"vocab_size": 4096})
    assert (num_params(config), num_embedding_params(config)) == (2_361_024, 786_432)


def test_no_position_sees_a_later_one(model: Llama, tokens: torch.Tensor) -> None:
    before = model(tokens)
    for place in (1, 20, 63):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % SMALL.vocab_size
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place] != before[:, place]).any()


def test_every_position_sees_all_earlier_ones(model: Llama, tokens: torch.Tensor) -> None:
    before = model(tokens)[:, -1]
    for place in range(SMALL.context):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % SMALL.vocab_size
        assert not torch.equal(model(changed)[:, -1], before)


def test_the_residual_stream_is_raw() -> None:
    """The notebook added to the normed x, so that the stream itself was lost."""
    block = Block(SMALL)
    for writer in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(writer.weight)
    x = 5 + 3 * torch.randn(1, 4, SMALL.dim)
    assert torch.equal(block(x, rotary_table(torch.arange(4), ModelConfig(head_dim=8))), x)


def test_there_is_a_final_norm(model: Llama, tokens: torch.Tensor) -> None:
    """The notebook had none; the scale of the stream must not reach the head."""
    hidden = model.hidden(tokens)
    assert torch.allclose(hidden.pow(2).mean(-1).sqrt(), torch.ones(2, SMALL.context), rtol=0.05)
    nn.init.constant_(model.model.norm.weight, 2.0)
    assert torch.allclose(model.hidden(tokens), 2 * hidden, atol=1e-5)


def test_positions_above_256_have_angles_of_their_own() -> None:
    """In the notebook positions were bf16, which has no odd integers above 256."""
    by = rotary_table(torch.arange(4096), ModelConfig(head_dim=64))
    assert by.cos.dtype == torch.float32
    angles = torch.stack([by.cos[:, 0], by.sin[:, 0]], -1)
    assert (angles[1:] - angles[:-1]).norm(dim=-1).min() > 0.5
    expected = torch.tensor([math.cos(4095), math.sin(4095)])
    assert torch.allclose(angles[-1], expected, atol=1e-3)


def test_angles_stay_fp32_when_the_model_computes_in_bf16(model: Llama) -> None:
    """Moving a shape with bf16 weights by 1 must change the scores also far out."""
    model = model.to(torch.bfloat16)
    by = rotary_table(torch.arange(300, 302), SMALL)
    x = torch.ones(1, 1, 1, SMALL.head_dim, dtype=torch.bfloat16)
    turned = apply_rotary(x.expand(1, 1, 2, SMALL.head_dim), by)
    assert turned.dtype == torch.bfloat16
    assert not torch.equal(turned[:, :, 0], turned[:, :, 1])


def test_scores_depend_on_distances_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16)
    scores = [
        (
            apply_rotary(q, rotary_table(torch.tensor([at + 5]), ModelConfig(head_dim=16)))
            * apply_rotary(k, rotary_table(torch.tensor([at]), ModelConfig(head_dim=16)))
        )
        .sum()
        .item()
        for at in (0, 7, 900)
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-3)


@pytest.mark.parametrize("factor", [1, 3, 4])
def test_scaled_positions_rotate_as_those_they_are_divided_to(
    factor: int, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At `factor` times the positions a model scaled by it is the unscaled one."""
    arange, positions = torch.arange, torch.arange(1024)
    config = ModelConfig(head_dim=64)
    divided = config.model_copy(update={"rope_scaling": float(factor)})
    scaled, plain = rotary_table(positions * factor, divided), rotary_table(positions, config)
    assert torch.equal(scaled.cos, plain.cos)
    assert torch.equal(scaled.sin, plain.sin)
    model, longer = Llama(SMALL), Llama(SMALL.model_copy(update={"rope_scaling": float(factor)}))
    longer.load_state_dict(model.state_dict())
    assert torch.equal(longer(tokens), model(tokens)) == (factor == 1)
    monkeypatch.setattr(
        torch, "arange", lambda *ends, **words: arange(*ends, **words) * (factor if "dtype" not in words else 1)
    )
    stretched = longer(tokens)
    monkeypatch.undo()
    assert torch.equal(stretched, model(tokens))


def test_nothing_drops_out(model: Llama, tokens: torch.Tensor) -> None:
    """The notebook dropped 10 % of its attention also when it was evaluated."""
    assert torch.equal(model.train()(tokens), model.eval()(tokens))
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


def test_norms_are_computed_in_fp32() -> None:
    x = (1000 * torch.randn(3, 64)).to(torch.bfloat16)
    norm = RMSNorm(64, 1e-5).to(torch.bfloat16)
    exact = x.double() / x.double().pow(2).mean(-1, keepdim=True).sqrt()
    assert torch.allclose(norm(x).double(), exact, rtol=2**-8, atol=0)


def test_there_are_no_biases(model: Llama) -> None:
    assert all(name.endswith(".weight") for name, _ in model.named_parameters())


def test_a_tied_head_is_the_embedding() -> None:
    tied = Llama(SMALL.model_copy(update={"tie_embeddings": True}))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_a_fresh_model_knows_nothing(model: Llama, tokens: torch.Tensor) -> None:
    loss = NextToken(model)(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(SMALL.vocab_size), abs=0.1)


def test_bf16_products_are_near_fp32(model: Llama, tokens: torch.Tensor) -> None:
    with Precision(torch.bfloat16, "").compute(torch.device("cpu")):
        low = model(tokens)
    assert low.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.allclose(low.float(), model(tokens), atol=0.02)


@pytest.mark.parametrize("bias", [False, True])
def test_projections_are_one_product_in_mixed_precision(bias: bool) -> None:
    layers = [nn.Linear(16, width, bias=bias) for width in (24, 8, 8)]
    x = torch.randn(2, 3, 16)
    expected = [layer(x) for layer in layers]
    assert all(torch.equal(*pair) for pair in zip(project_together(x, *layers), expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        together = project_together(x, *layers)
        alone = [layer(x) for layer in layers]
    assert all(torch.allclose(*pair, atol=1e-2) for pair in zip(together, alone, strict=True))
    torch.autograd.backward(torch.cat(tuple(together), dim=-1).float().sum())
    assert all(layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32 for layer in layers)


def test_recomputed_blocks_keep_no_state_of_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """To keep it costs a copy from the device for each block; dropout's numbers are arguments of the blocks."""
    model = Llama(ModelConfig(n_layers=2, dim=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8, context=4, vocab_size=16))
    model.model.activation_checkpointing = True

    def refused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "get_rng_state", refused)
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_empty_model_has_shapes_alone_and_takes_no_compiler() -> None:
    """PyTorch imports its compiler, a second's work, where values are drawn on the meta device."""
    code = """
import sys
from llamactl.config.schema import ModelConfig
from llamactl.model.llama import Llama, build_empty
config = ModelConfig(n_layers=2, dim=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=8, context=4, vocab_size=16, qkv_bias=True)
empty, usual = build_empty(config).state_dict(), Llama(config).state_dict()
assert {name: tensor.shape for name, tensor in empty.items()} == {name: tensor.shape for name, tensor in usual.items()}
assert {tensor.device.type for tensor in empty.values()} == {"meta"}
assert usual["model.embed_tokens.weight"].std() > 0
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr

"""Optimizers against torch's own, and who optimizes what."""

from typing import Any

import pytest
import torch
from torch import nn

from llamactl.config.schema import ModelConfig, OptimConfig
from llamactl.model.llama import Llama
from llamactl.optim.build import OPTIMIZERS, default_lr, set_lr_and_momentum
from llamactl.optim.muon import Muon, _newton_schulz, orthogonalize

SHAPE = ModelConfig(n_layers=2, dim=48, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, context=64, vocab_size=128)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_in_exactly_one_group(name: str, tied: bool) -> None:
    model = Llama(SHAPE.model_copy(update={"tie_embeddings": tied}))
    optimizers = OPTIMIZERS[name](model, OptimConfig(lr=0.1), torch.float32)
    placed = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(model.parameters())


def test_muon_has_the_matrices_inside_blocks_and_only_they_decay() -> None:
    model = Llama(SHAPE)
    matrices = {parameter for name, parameter in model.named_parameters() if ".layers." in name and parameter.ndim == 2}
    assert len(matrices) == 14
    muon, rest = OPTIMIZERS["muon"](model, OptimConfig(lr=0.1), torch.float32)
    assert isinstance(muon, Muon)
    assert set(muon.param_groups[0]["params"]) == matrices
    assert [group["weight_decay"] for group in rest.param_groups] == [0.0, 0.0]
    (adamw,) = OPTIMIZERS["adamw"](model, OptimConfig(lr=0.1), torch.float32)
    assert {p for group in adamw.param_groups if group["weight_decay"] for p in group["params"]} == matrices


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    """torch's orthogonalises in bf16; ours, in fp32, differs by no more than that rounding."""
    ours = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95}
    stacked = Muon(ours, OptimConfig(normuon_beta2=0.0, **options))
    pair = (stacked, torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options))
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(shape)
            other.grad = mine.grad.clone()
        start = [parameter.detach().clone() for parameter in theirs]
        for optimizer in pair:
            optimizer.step()
        for mine, other, before in zip(ours, theirs, start, strict=True):
            moved = (other - before).norm()
            assert (mine - other).norm() < 0.03 * moved
            mine.data.copy_(other.data)


def test_muon_in_fp32_is_the_formula() -> None:
    weight, gradients = torch.randn(6, 4), torch.randn(3, 6, 4)
    parameter, buffer, expected = nn.Parameter(weight.clone()), torch.zeros(6, 4), weight.clone()
    optimizer = Muon([parameter], OptimConfig(lr=0.1, weight_decay=0.2, momentum=0.9, normuon_beta2=0.0))
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        ahead = 0.1 * gradient + 0.9 * buffer
        step = orthogonalize(ahead[None], torch.float32)[0] * 0.2 * 6**0.5
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * step
        assert torch.allclose(parameter, expected, atol=1e-5)


def test_rows_that_have_moved_most_move_less_and_the_whole_as_much() -> None:
    """Two steps by the formula: each row over the root of its remembered mean square, then the old norm of the whole."""
    gradients = torch.randn(2, 6, 8) * torch.logspace(0, 1, 6)[:, None]
    even, plain = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.zeros(6, 8))
    settings = OptimConfig(lr=0.1, weight_decay=0.0, momentum=0.5, normuon_beta2=0.9)
    pair = Muon([even], settings), Muon([plain], settings.model_copy(update={"normuon_beta2": 0.0}))
    rows = torch.zeros(6)
    for gradient in gradients:
        before = even.detach().clone(), plain.detach().clone()
        for parameter, optimizer in zip((even, plain), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        step, reference = even.detach() - before[0], plain.detach() - before[1]
        rows = 0.9 * rows + 0.1 * reference.square().mean(-1)
        expected = reference / rows.sqrt()[:, None]
        assert torch.allclose(step, expected * reference.norm() / expected.norm(), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 64, 16), (2, 16, 64), (4, 24, 8)])
def test_orthogonalising_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), torch.float32))
    assert values.max() < 1.3
    assert values.median() > 0.65


@pytest.mark.parametrize("shape", [(1, 48, 128), (3, 20, 30), (2, 96, 32)])
def test_the_way_through_the_gram_matrix_ends_at_the_same_matrix(shape: tuple[int, ...]) -> None:
    """Also where singular values differ a thousandfold."""
    matrices = torch.randn(shape, dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    matrices = u * torch.logspace(0, -3, values.shape[-1], dtype=torch.float64) @ v
    x = matrices.mT if shape[-2] > shape[-1] else matrices
    expected = _newton_schulz(x / x.norm(dim=(-2, -1), keepdim=True))
    found = orthogonalize(matrices.float(), torch.float32)
    found = found.mT if shape[-2] > shape[-1] else found
    assert torch.allclose(found.double(), expected, atol=2e-3)


def test_stacking_changes_nothing() -> None:
    matrices = torch.randn(5, 24, 8)
    alone = torch.cat([orthogonalize(matrix[None], torch.float32) for matrix in matrices])
    assert torch.allclose(orthogonalize(matrices, torch.float32), alone, atol=1e-5)


def test_small_steps_reach_the_weights() -> None:
    """The notebook's weights were bf16, where a step below half a unit in the last place is lost."""
    for name in OPTIMIZERS:
        model = Llama(SHAPE)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        model(torch.randint(0, 128, (2, 64))).square().mean().backward()
        for optimizer in OPTIMIZERS[name](model, OptimConfig(lr=1e-6), torch.float32):
            optimizer.step()
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert parameter.dtype == torch.float32
            assert (parameter != old).float().mean() > 0.5 or parameter.ndim == 1


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_alone_has_a_rate_of_its_own(tied: bool) -> None:
    model = Llama(SHAPE.model_copy(update={"tie_embeddings": tied}))
    optimizers = OPTIMIZERS["muon"](model, OptimConfig(lr=0.1, embedding_scale=20), torch.float32)
    set_lr_and_momentum(optimizers, 0.5, momentum=0.9)
    rates = {p: group["lr"] for each in optimizers for group in each.param_groups for p in group["params"]}
    assert rates.pop(model.model.embed_tokens.weight) == 10.0
    assert set(rates.values()) == {0.5}


def test_default_rates_fall_with_width() -> None:
    assert default_lr("muon", 192) == pytest.approx(2 * default_lr("muon", 768))

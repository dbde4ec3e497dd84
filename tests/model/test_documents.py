"""Documents that share a window do not see one another: each has the logits and the gradients that it has alone."""

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from llamactl.config.schema import ModelConfig
from llamactl.model import attention as attention_module
from llamactl.model.attention import Documents, attention, document_mask, packed_kernel, packs_documents, separate_documents
from llamactl.model.llama import Llama

WINDOW = 70  # two blocks of queries on a CPU
SHAPE = ModelConfig(
    n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=WINDOW, vocab_size=64, qk_norm=True
)
# Where documents begin in each window; one begins at 0 anyway.
LAYOUTS = st.lists(st.lists(st.integers(1, WINDOW - 1), max_size=9, unique=True), min_size=1, max_size=3)
KNOWN: tuple[list[list[int]], ...] = (
    [[]],  # a whole window
    [list(range(1, WINDOW))],  # documents of one token
    [[WINDOW - 1], [1]],  # a token at the end, and one at the start
    [[64], [], [63, 64, 65]],  # at the end of a block of queries
)


def starts_of(layout: list[list[int]]) -> Tensor:
    """The layout as the model has it."""
    places = [row * WINDOW + start for row, starts in enumerate(layout) for start in sorted({0, *starts})]
    return torch.tensor([*places, len(layout) * WINDOW], dtype=torch.int32)


def check(layout: list[list[int]]) -> None:
    """Compare logits and gradients with those of each document alone."""
    torch.manual_seed(0)
    model, starts = Llama(SHAPE), starts_of(layout)
    tokens = torch.randint(0, 64, (len(layout), WINDOW))
    pull = torch.randn(len(layout) * WINDOW, 64)
    together = model.lm_head(model.hidden(tokens, documents=starts)).flatten(0, 1)
    torch.autograd.backward((together * pull).sum())
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    alone = torch.cat([model(tokens.flatten()[None, start:end])[0] for start, end in pairwise(starts.tolist())])
    torch.autograd.backward((alone * pull).sum())
    assert torch.allclose(together, alone, atol=1e-5)
    for mine, parameter in zip(found, model.parameters(), strict=True):
        assert mine is not None
        assert parameter.grad is not None
        assert (mine - parameter.grad).norm() <= 1e-5 * parameter.grad.norm()


@pytest.mark.parametrize("longest", [1024, 8], ids=["masked", "one by one"])
@pytest.mark.parametrize("layout", KNOWN)
def test_a_document_is_computed_as_it_is_alone(layout: list[list[int]], longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "SHORT", longest)
    check(layout)


@settings(max_examples=25, deadline=None)
@given(LAYOUTS)
def test_a_document_of_any_layout_is_computed_as_it_is_alone(layout: list[list[int]]) -> None:
    for longest in (1024, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_module, "SHORT", longest)
            check(layout)


def test_documents_that_see_one_another_have_other_logits() -> None:
    model = Llama(SHAPE)
    tokens = torch.randint(0, 64, (1, WINDOW))
    apart = model.lm_head(model.hidden(tokens, documents=starts_of([[30]])))
    assert torch.allclose(apart[:, :30], model(tokens)[:, :30], atol=1e-5)
    assert not torch.allclose(apart[:, 30:], model(tokens)[:, 30:], atol=1e-2)


def test_the_kernel_for_packed_documents_gets_them_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes is written out here: only a GPU has it."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, same: Tensor, *longest: int, **options: Any) -> Tensor:
        assert starts is same
        assert longest == (WINDOW, WINDOW)
        assert options["window_size"] == (-1, 0)
        parts = []
        for start, end in pairwise(starts.tolist()):
            rows, keys, values = (each[start:end].transpose(0, 1) for each in (q, k, v))
            parts.append(F.scaled_dot_product_attention(rows, keys, values, is_causal=True, enable_gqa=True))
        return torch.cat(parts, dim=1).transpose(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    q, k, v = torch.randn(2, 6, WINDOW, 8), *torch.randn(2, 2, 3, WINDOW, 8)
    starts = starts_of([[5, 30], [64]])
    expected = attention(q, k, v, document_mask(starts, torch.zeros(2, WINDOW)))
    assert torch.allclose(attention(q, k, v, Documents(starts, packed_kernel())), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "context", "packs"),
    [
        ("cuda", torch.bfloat16, 128, 256, True),
        ("cuda", torch.bfloat16, 36, 256, False),
        ("cuda", torch.bfloat16, 512, 256, False),
        ("cuda", torch.float16, 128, 256, False),
        ("cuda", torch.float32, 128, 256, False),
        ("mps", torch.bfloat16, 128, 256, False),
        ("cpu", torch.float32, 50, 1024, False),
        ("cpu", torch.bfloat16, 50, 2048, True),
    ],
)
def test_a_mask_is_made_where_no_kernel_takes_documents(
    device: str, dtype: torch.dtype, width: int, context: int, packs: bool
) -> None:
    assert packs_documents(torch.device(device), dtype, width, context) is packs


def test_a_mask_of_a_gpu_is_one_of_numbers_in_the_format_of_the_products() -> None:
    """The device "meta" stands for it."""
    starts, tokens = torch.tensor([0, 3, 8], dtype=torch.int32, device="meta"), torch.zeros(2, 4, device="meta")
    mask = separate_documents(starts, tokens, 8, torch.float16)
    assert isinstance(mask, Tensor)
    assert (mask.dtype, mask.shape) == (torch.float16, (2, 1, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("longest", [1024, 8], ids=["masked", "one by one"])
def test_compiled_blocks_are_compiled_once_for_any_number_of_documents(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "SHORT", longest)
    torch.manual_seed(0)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    eager, compiled = Llama(SHAPE), Llama(SHAPE)
    compiled.load_state_dict(eager.state_dict())
    for block in compiled.model.layers:
        block.compile(backend=backend, dynamic=False)
    tokens = torch.randint(0, 64, (2, WINDOW))
    counts = []
    for number in accumulate([0, 1, 4, 9, 20]):
        starts = starts_of([list(range(1, 1 + number)), []])
        expected = eager.hidden(tokens, documents=starts)
        assert torch.allclose(compiled.hidden(tokens, documents=starts), expected, atol=1e-5)
        counts.append(len(graphs))
    assert len(set(counts)) == 1


def test_packed_documents_are_known_by_their_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "SHORT", 8)
    starts = starts_of([[5]])
    assert separate_documents(starts, torch.zeros(1, WINDOW), 8, torch.float32) == Documents(starts)

"""Decoding: the cache changes nothing, and picking does what its options say."""

from itertools import islice

import pytest
import torch

from llamactl.config import ModelConfig
from llamactl.model.cache import KVCache
from llamactl.model.decode import Picker, decode
from llamactl.model.llama import Llama

SHAPE = ModelConfig(layers=2, width=48, heads=6, kv_heads=2, head_width=8, hidden=80, context=40, vocab_size=128)


@pytest.fixture
def model() -> Llama:
    return Llama(SHAPE)


def test_the_cache_changes_nothing(model: Llama) -> None:
    tokens = torch.randint(0, 128, (3, 40))
    whole = model(tokens)
    cache = KVCache(SHAPE, 3, tokens.device, torch.float32)
    pieces = [model(tokens[:, start:end], cache) for start, end in ((0, 5), (5, 6), (6, 7), (7, 40))]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)


def uncached(model: Llama, prompt: list[int], new: int) -> list[int]:
    """The same as greedy decoding, by reading everything again for each token."""
    text = torch.tensor([prompt])
    for _ in range(new):
        text = torch.cat([text, model(text)[:, -1, :100].argmax(-1, keepdim=True)], dim=1)
    found: list[int] = text[0, len(prompt) :].tolist()
    return found


def greedy(model: Llama, prompts: list[list[int]], new: int) -> list[list[int]]:
    decoding = decode(model, prompts, vocab_size=100, pick=Picker(temperature=0), generator=torch.Generator())
    found: list[list[int]] = torch.stack([step.tokens for step in islice(decoding, new)], dim=1).tolist()
    return found


def test_greedy_decoding_is_the_uncached_loop(model: Llama) -> None:
    prompt = torch.randint(0, 100, (6,)).tolist()
    assert greedy(model, [prompt], 20) == [uncached(model, prompt, 20)]


def test_prompts_of_different_lengths_go_on_as_each_does_alone(model: Llama) -> None:
    prompts = [torch.randint(0, 100, (length,)).tolist() for length in (1, 6, 3, 17)]
    assert greedy(model, prompts, 20) == [uncached(model, prompt, 20) for prompt in prompts]


def test_past_the_context_the_second_half_is_read_again(model: Llama) -> None:
    prompts = [torch.randint(0, 100, (length,)).tolist() for length in (99, 2)]
    found = greedy(model, prompts, 60)
    long = prompts[0][-39:]
    assert found[0][:2] == uncached(model, long, 2)
    text = long + found[0][:2]  # 40 tokens were read for the second, and then the last 20 again
    assert found[0][2] == uncached(model, text[-20:], 1)[0]
    assert found[0][2:22] == uncached(model, text[-20:], 20)
    # The short one has its two tokens in a context that fills up at the same time, and keeps all it said.
    alone = prompts[1] + found[1]
    assert found[1][2:22] == uncached(model, alone[:4], 20)


def test_log_probabilities_are_those_of_the_model(model: Llama) -> None:
    prompt = torch.randint(0, 128, (6,)).tolist()
    steps = list(islice(decode(model, [prompt], 128, Picker(0.7, top_k=3), torch.Generator()), 5))
    text = prompt + [int(step.tokens) for step in steps]
    logs = model(torch.tensor([text]))[0].log_softmax(-1)
    for place, step in enumerate(steps, start=len(prompt)):
        assert step.log_probabilities.item() == pytest.approx(logs[place - 1, text[place]].item(), abs=1e-4)


def test_padding_of_the_vocabulary_is_never_picked(model: Llama) -> None:
    decoding = decode(model, [[0, 0]] * 64, 5, Picker(temperature=9.0), torch.Generator())
    picked = torch.cat([step.tokens for step in islice(decoding, 30)])
    assert set(picked.tolist()) == {0, 1, 2, 3, 4}


def test_the_same_seed_picks_the_same(model: Llama) -> None:
    def run(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(step.tokens) for step in islice(decode(model, [[0, 0]], 128, Picker(), generator), 30)]

    assert run(1) == run(1) != run(2)


LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -9.0]])
NOTHING = torch.zeros(1, 0, dtype=torch.int64)


@pytest.mark.parametrize(
    ("pick", "kept"),
    [
        (Picker(1.0), 5),
        (Picker(1.0, top_k=2), 2),
        (Picker(1.0, top_k=99), 5),
        (Picker(1.0, top_p=0.5), 1),
        (Picker(1.0, top_p=0.7), 2),
        (Picker(1.0, top_p=0.0), 1),
        (Picker(1.0, min_p=0.1), 3),
        (Picker(1.0, top_k=3, top_p=0.9, min_p=0.3), 2),
    ],
)
def test_filters_keep_the_likeliest(pick: Picker, kept: int) -> None:
    chances = pick.probabilities(LOGITS)
    assert (chances > 0).sum() == kept
    assert chances.sum().item() == pytest.approx(1)
    assert torch.allclose(chances[:, :kept], LOGITS[:, :kept].softmax(-1), atol=1e-6)


def test_temperature_sharpens() -> None:
    assert torch.allclose(Picker(0.5).probabilities(LOGITS), (LOGITS * 2).softmax(-1))
    assert Picker(0.0)(LOGITS, NOTHING, torch.Generator()).item() == 0


def test_what_was_said_is_less_likely_again() -> None:
    text = torch.tensor([[0, 0, 4]])
    expected = torch.tensor([[1.5, 2.0, 1.0, 0.0, -18.0]])
    assert torch.equal(Picker(1.0, repetition_penalty=2.0).penalised(LOGITS, text), expected)
    assert Picker(0.0, repetition_penalty=2.0)(LOGITS, text, torch.Generator()).item() == 1


def test_picks_follow_the_distribution() -> None:
    picked = Picker(1.0)(LOGITS.expand(20_000, 5), NOTHING, torch.Generator().manual_seed(0))
    shares = torch.bincount(picked, minlength=5) / 20_000
    assert torch.allclose(shares, LOGITS.softmax(-1)[0], atol=0.015)

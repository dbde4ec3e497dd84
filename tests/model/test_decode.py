"""Decoding: the cache changes nothing, and picking does what its options say."""

from itertools import islice

import pytest
import torch

from llamactl.config.schema import ModelConfig
from llamactl.model.cache import KVCache, RowsCache
from llamactl.model.decode import Sampler, decode_tokens, uniform_draws
from llamactl.model.llama import Llama

SHAPE = ModelConfig(n_layers=2, dim=48, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, context=40, vocab_size=128)


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
    decoding = decode_tokens(model, prompts, vocab_size=100, pick=Sampler(temperature=0), seeds=range(len(prompts)))
    found: list[list[int]] = torch.stack([step.tokens for step in islice(decoding, new)], dim=1).tolist()
    return found


def test_greedy_decoding_is_the_uncached_loop(model: Llama) -> None:
    prompt = torch.randint(0, 100, (6,)).tolist()
    assert greedy(model, [prompt], 20) == [uncached(model, prompt, 20)]


def test_prompts_of_one_length_go_on_as_each_does_alone(model: Llama) -> None:
    prompts = [torch.randint(0, 100, (6,)).tolist() for _ in range(4)]
    assert greedy(model, prompts, 20) == [uncached(model, prompt, 20) for prompt in prompts]


def test_past_the_context_the_second_half_is_read_again(model: Llama) -> None:
    prompt = torch.randint(0, 100, (99,)).tolist()
    (found,) = greedy(model, [prompt], 60)
    long = prompt[-39:]
    assert found[:2] == uncached(model, long, 2)
    text = long + found[:2]  # 40 tokens were read for the second, and then the last 20 again
    assert found[2] == uncached(model, text[-20:], 1)[0]
    assert found[2:22] == uncached(model, text[-20:], 20)


def test_log_probabilities_are_those_of_the_model(model: Llama) -> None:
    prompt = torch.randint(0, 128, (6,)).tolist()
    steps = list(islice(decode_tokens(model, [prompt], 128, Sampler(0.7, top_k=3), [0]), 5))
    text = prompt + [int(step.tokens) for step in steps]
    logs = model(torch.tensor([text]))[0].log_softmax(-1)
    for place, step in enumerate(steps, start=len(prompt)):
        assert step.log_probabilities.item() == pytest.approx(logs[place - 1, text[place]].item(), abs=1e-4)


def test_padding_of_the_vocabulary_is_never_picked(model: Llama) -> None:
    decoding = decode_tokens(model, [[0, 0]] * 64, 5, Sampler(temperature=9.0), range(64))
    picked = torch.cat([step.tokens for step in islice(decoding, 30)])
    assert set(picked.tolist()) == {0, 1, 2, 3, 4}


def test_the_same_seed_picks_the_same(model: Llama) -> None:
    def run(seed: int) -> list[int]:
        return [int(step.tokens) for step in islice(decode_tokens(model, [[0, 0]], 128, Sampler(), [seed]), 30)]

    assert run(1) == run(1) != run(2)


LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -9.0]])
NOTHING = [torch.zeros(1, 0, dtype=torch.int64)]


@pytest.mark.parametrize(
    ("pick", "kept"),
    [
        (Sampler(1.0), 5),
        (Sampler(1.0, top_k=2), 2),
        (Sampler(1.0, top_k=99), 5),
        (Sampler(1.0, top_p=0.5), 1),
        (Sampler(1.0, top_p=0.7), 2),
        (Sampler(1.0, top_p=0.0), 1),
        (Sampler(1.0, min_p=0.1), 3),
        (Sampler(1.0, top_k=3, top_p=0.9, min_p=0.3), 2),
    ],
)
def test_filters_keep_the_likeliest(pick: Sampler, kept: int) -> None:
    chances = pick.probs(LOGITS)
    assert (chances > 0).sum() == kept
    assert chances.sum().item() == pytest.approx(1)
    assert torch.allclose(chances[:, :kept], LOGITS[:, :kept].softmax(-1), atol=1e-6)


def test_temperature_sharpens() -> None:
    assert torch.allclose(Sampler(0.5).probs(LOGITS), (LOGITS * 2).softmax(-1))
    assert Sampler(0.0)(LOGITS, NOTHING, torch.zeros(1)).item() == 0


def test_what_was_said_is_less_likely_again() -> None:
    text = torch.tensor([[0, 0, 4]])
    expected = torch.tensor([[1.5, 2.0, 1.0, 0.0, -18.0]])
    assert torch.equal(Sampler(1.0, repetition_penalty=2.0).apply_repetition_penalty(LOGITS, text), expected)
    assert Sampler(0.0, repetition_penalty=2.0)(LOGITS, [text[:, :1], text[:, 1:]], torch.zeros(1)).item() == 1


def test_picks_follow_the_distribution() -> None:
    draws = next(uniform_draws(range(20_000), torch.device("cpu")))
    picked = Sampler(1.0)(LOGITS.expand(20_000, 5), NOTHING, draws)
    shares = torch.bincount(picked, minlength=5) / 20_000
    assert torch.allclose(shares, LOGITS.softmax(-1)[0], atol=0.015)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pick", [Sampler(1.0), Sampler(1.0, top_k=2), Sampler(0.3, top_p=0.5), Sampler(1.0, min_p=0.9)])
def test_no_draw_picks_what_has_no_chance(pick: Sampler, dtype: torch.dtype) -> None:
    """Neither the smallest draw nor the largest, which rounding makes 1; the ends of the vocabulary are never likely here."""
    logits = torch.tensor([[-torch.inf, -torch.inf, 1.0, 0.9, 3.0, -torch.inf, -torch.inf]])
    for draws in (0.0, 2.0**-53, 1 - 2.0**-53, 1.0):
        assert int(pick(logits, NOTHING, torch.tensor([draws], dtype=dtype))) in {2, 3, 4}


def test_the_numbers_of_a_sequence_are_its_own() -> None:
    """`uniform_draws` is the one place where randomness comes from: a generator for each seed, whatever the other seeds are."""
    alone = list(islice(uniform_draws([7], torch.device("cpu")), 150))
    together = list(islice(uniform_draws([1, 7, 2], torch.device("cpu")), 150))
    assert [float(each[0]) for each in alone] == [float(each[1]) for each in together]
    assert len({float(each[0]) for each in alone}) == 150


@pytest.mark.parametrize(("device", "dtype"), [("mps", torch.float32), ("cuda", torch.float64)])
def test_apples_gpus_get_numbers_of_a_format_they_have(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _, dtype: to(tensor, dtype))
    assert next(uniform_draws([7], torch.device(device))).dtype == dtype


def test_a_step_of_one_shape_gives_the_logits_of_the_usual_one(model: Llama) -> None:
    """What a CUDA graph captures, run without one: buffers of all positions, a mask, a position on the device."""
    ids = torch.randint(0, SHAPE.vocab_size, (2, 12))
    usual, copied = (KVCache(SHAPE, 2, ids.device, torch.float32) for _ in range(2))
    with torch.inference_mode():
        for cache in (usual, copied):
            model(ids[:, :5], cache)
        positions = torch.zeros(2, dtype=torch.int64)
        fixed = RowsCache(copied, torch.arange(2), positions, SHAPE.context)
        for place in range(5, 12):
            positions.fill_(place)
            found = model(ids[:, place : place + 1], fixed)
            assert torch.allclose(found, model(ids[:, place : place + 1], usual), atol=1e-5)

"""Texts that come and go while others are continued: each is what it would be alone."""

import random
from itertools import islice

import pytest
import torch

from llamactl.config.schema import ModelConfig
from llamactl.model.continuous import Continuation, ContinuousBatch
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama

SHAPE = ModelConfig(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=24, vocab_size=131)


@pytest.fixture(params=["native", "PyTorch"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Llama:
    if request.param == "PyTorch":
        monkeypatch.setattr("llamactl.model.row_steps.native_step", lambda *_: None)
    torch.manual_seed(3)
    model = Llama(SHAPE).double().eval() if request.param == "PyTorch" else Llama(SHAPE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def alone(model: Llama, prompt: list[int], pick: Sampler, seed: int, new: int) -> list[tuple[int, float]]:
    steps = islice(decode_tokens(model, [prompt], 130, pick, [seed]), new)
    return [(int(step.tokens), round(float(step.log_probabilities), 3)) for step in steps]


def test_each_text_is_what_it_would_be_alone(model: Llama) -> None:
    """Prompts of all lengths, also beyond the context; each begins and ends at its own time, and goes past the context."""
    choice = random.Random(5)
    batch, waiting, found = ContinuousBatch(model, 130), list(range(20)), {}
    prompts = [[choice.randrange(130) for _ in range(choice.randrange(1, 30))] for _ in waiting]
    prompts[7] = prompts[6]
    picks = [Sampler(choice.choice([0, 0.7, 1.3]), choice.choice([0, 5])) for _ in waiting]
    wanted = [choice.randrange(1, 60) for _ in waiting]
    active: dict[Continuation, int] = {}
    while waiting or active:
        for _ in range(min(len(waiting), choice.randrange(4))):
            number = waiting.pop()
            active[text := Continuation(prompts[number], picks[number], number, model)] = number
            found[number] = list[tuple[int, float]]()
            batch.add(text)
        assert len(batch) == len(active)
        for text, step in batch.step():
            number = active[text]
            found[number].append((int(step.tokens), round(float(step.log_probabilities), 3)))
            if len(found[number]) == wanted[number]:
                batch.remove(text)
                del active[text]
    for number, prompt in enumerate(prompts):
        expected = alone(model, prompt, picks[number], number, wanted[number])
        assert [token for token, _ in found[number]] == [token for token, _ in expected]
        assert [log for _, log in found[number]] == pytest.approx([log for _, log in expected], abs=2e-3)


def test_a_cache_that_can_not_grow_changes_nothing(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ContinuousBatch(model, 130)
    first, second = (Continuation([1, 2, seed], Sampler(0), seed, model) for seed in range(2))
    batch.add(first)
    found = [int(step.tokens) for _, step in batch.step()]

    def full(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as changed:
        changed.setattr(ContinuousBatch, "_allocate", full)
        with pytest.raises(RuntimeError):
            batch.add(second)
    batch.remove(second)  # which is not there
    assert len(batch) == 1
    batch.add(second)
    both = [{text: int(step.tokens) for text, step in batch.step()} for _ in range(3)]
    found += [tokens[first] for tokens in both]
    assert found == [token for token, _ in alone(model, [1, 2, 0], Sampler(0), 0, 4)]
    assert [tokens[second] for tokens in both] == [token for token, _ in alone(model, [1, 2, 1], Sampler(0), 1, 3)]


def test_memory_is_given_back(model: Llama) -> None:
    batch = ContinuousBatch(model, 130)
    texts = [Continuation([1], Sampler(0), seed, model) for seed in range(9)]
    for text in texts:
        batch.add(text)
    list(batch.step())
    assert len(batch._rows) == 16
    for text in texts:
        batch.remove(text)
    assert list(batch.step()) == []
    assert len(batch._rows) == 1


def test_equal_prompts_are_read_once(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    usual = Llama.hidden

    def counted(self: Llama, tokens: torch.Tensor, *more: object) -> torch.Tensor:
        reads.append(tokens.shape[1])
        return usual(self, tokens, *more)  # type: ignore[arg-type]

    batch = ContinuousBatch(model, 130)
    for seed in range(5):
        batch.add(Continuation([1, 2, 3], Sampler(1.0), seed, model))
    monkeypatch.setattr(Llama, "hidden", counted)
    texts = [text for text, _ in batch.step()]
    assert reads == [3]
    assert len({int(text.text[0, -1]) for text in texts}) > 1
    again = {text: [int(step.tokens)] for text, step in batch.step()}
    for seed, text in enumerate(texts):
        tokens = [token for token, _ in alone(model, [1, 2, 3], Sampler(1.0), seed, 2)]
        assert tokens == [int(text.text[0, 3]), *again[text]]

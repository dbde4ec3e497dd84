"""Texts that come and go while others are continued: each is what it would be alone."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from llamactl.config.schema import ModelConfig
from llamactl.model.cache import KVCache
from llamactl.model.continuous import Continuation, ContinuousBatch
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama
from llamactl.model.row_steps import GraphedStep, model_step

SHAPE = ModelConfig(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=24, vocab_size=131)


class Replayed(GraphedStep):
    """A step whose graph does on a CPU what was captured, where it was captured: in the same tensors."""

    def __init__(self, model: Llama, cache: KVCache, vocab_size: int, positions: Sequence[int]) -> None:
        self.model, self.vocab_size = model, vocab_size
        stream = SimpleNamespace(wait_stream=lambda _: None)
        captured: dict[str, Any] = {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": nullcontext,
            "CUDAGraph": lambda: self,
        }
        with patch.multiple(torch.cuda, **captured), patch("llamactl.model.row_steps.capture_graph", self.capture):
            super().__init__(model, cache, vocab_size, positions)

    @contextmanager
    def capture(self, _: object) -> Iterator[None]:
        """Run what a GPU would only record, and take back what that changed and a replay reads."""
        before = self.positions.clone()
        yield
        self.positions.copy_(before)

    def replay(self) -> None:
        with torch.inference_mode():
            again = model_step(self.model, self.tokens, self.rows, self.vocab_size)
            for held, new in zip(self.scores, again, strict=True):
                held.copy_(new)
            self.positions.add_(1).clamp_(max=SHAPE.context - 1)


@pytest.fixture(params=["native", "PyTorch", "graph"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Llama:
    if request.param != "native":
        monkeypatch.setattr("llamactl.model.row_steps.native_step", lambda *_: None)
    if request.param == "graph":
        monkeypatch.setattr("llamactl.model.row_steps.capture_step", Replayed)
    torch.manual_seed(3)
    model = Llama(SHAPE).eval() if request.param == "native" else Llama(SHAPE).double().eval()
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
    assert len({int(text.last_token) for text in texts}) > 1
    again = {text: [int(step.tokens)] for text, step in batch.step()}
    for seed, text in enumerate(texts):
        tokens = [token for token, _ in alone(model, [1, 2, 3], Sampler(1.0), seed, 2)]
        assert tokens == [int(text.join_text()[0, 3]), *again[text]]


@pytest.mark.parametrize("left_out", [0, 2])
def test_positions_are_sent_to_the_device_only_where_texts_have_come(left_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each such copy waits for a GPU: neither a text that goes on nor an empty row needs one."""
    cache = KVCache(SHAPE, 4, torch.device("cpu"), torch.float32)
    lengths = [3 + row for row in range(4)]
    lengths[left_out] = 0
    steps, sent, tensor = Replayed(Llama(SHAPE).eval(), cache, 130, lengths), list[object](), torch.tensor

    def send(values: list[int]) -> torch.Tensor:
        sent.append(values)
        return tensor(values)

    monkeypatch.setattr(torch, "tensor", send)
    for _ in range(5):
        steps(torch.ones(4, 1, dtype=torch.int64), None, lengths)
        lengths = [length + (length > 0) for length in lengths]
    assert not sent
    lengths[left_out] = 9
    steps(torch.ones(4, 1, dtype=torch.int64), None, lengths)
    assert sent == [lengths]
    assert steps.positions.tolist() == [length + 1 for length in lengths]

"""Text out of a model: streamed in whole characters, ended by the end-of-text token."""

import pytest
import torch

from llamactl import tokenizer
from llamactl.config import ModelConfig
from llamactl.inference.generate import Request, Voice, generate
from llamactl.model.decode import Picker
from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer

SHAPE = ModelConfig(layers=1, width=16, heads=2, kv_heads=1, head_width=8, hidden=16, context=64, vocab_size=384)


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return tokenizer.raw_bytes()


def test_half_characters_wait_for_their_other_half(raw: Tokenizer) -> None:
    voice = Voice(raw)
    assert [voice.hear(byte) for byte in "aé🦙".encode()] == ["a", "", "é", "", "", "", "🦙"]
    assert (voice.hear(raw.end), voice.hear(97), voice.ended) == ("", "", True)


def test_the_prompt_is_opened_by_end_of_text(raw: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    hidden = Llama.hidden

    def spy(self: Llama, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tokens[0].tolist())
        return hidden(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Llama, "hidden", spy)
    list(generate(Llama(SHAPE), raw, Request("ab", max_new_tokens=3)))
    assert seen[0] == [256, 97, 98]
    assert [len(tokens) for tokens in seen] == [3, 1, 1]


def test_samples_differ_and_a_seed_repeats_them(raw: Tokenizer) -> None:
    model = Llama(SHAPE)

    def texts(seed: int) -> list[str]:
        pieces = list(generate(model, raw, Request("a", max_new_tokens=30, samples=3, seed=seed)))
        return ["".join(piece[number] for piece in pieces) for number in range(3)]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) == 3


def test_it_stops_when_all_have_ended(raw: Tokenizer) -> None:
    model = Llama(SHAPE)
    with torch.no_grad():
        model.model.norm.weight.fill_(0)  # every score is 0, so the first id is picked: a NUL byte, never the end
    assert len(list(generate(model, raw, Request("a", max_new_tokens=5, pick=Picker(0))))) == 5
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
        model.lm_head.weight[raw.end] = 1e3 * model.hidden(torch.tensor([[256, 97]]))[0, -1]
    assert list(generate(model, raw, Request("a", samples=2, max_new_tokens=50, pick=Picker(0)))) == [["", ""]]

"""Text out of a model: streamed in whole characters, ended by the end-of-text token or a stop."""

import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamactl import tokenizer
from llamactl.config import ModelConfig
from llamactl.hugging_face import described
from llamactl.inference.generate import Request, Said, Voice, generate
from llamactl.model.decode import Picker
from llamactl.model.llama import Llama
from llamactl.tokenizer import Tokenizer

SHAPE = ModelConfig(layers=1, width=16, heads=2, kv_heads=1, head_width=8, hidden=16, context=64, vocab_size=384)


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return tokenizer.raw_bytes()


def last(model: Llama, raw: Tokenizer, request: Request) -> list[Said]:
    said: list[Said] = []
    streamed: dict[int, str] = {}
    for said in generate(model, raw, request):
        for number, each in enumerate(said):
            streamed[number] = streamed.get(number, "") + each.new
    assert [each.text for each in said] == list(streamed.values())
    return said


def test_half_characters_wait_for_their_other_half(raw: Tokenizer) -> None:
    voice = Voice(raw)
    assert [voice.hear(byte) for byte in "aé🦙".encode()] == ["a", "", "é", "", "", "", "🦙"]
    assert (voice.hear(raw.end), voice.hear(97), voice.ended) == ("", "", True)


def test_what_waits_is_said_at_the_end(raw: Tokenizer) -> None:
    voice = Voice(raw)
    assert [voice.hear(byte) for byte in "é".encode()[:1]] == [""]
    assert voice.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one. Two", ["o", "n", "e", "", "", ""]),  # the stop is never seen, nor is what follows it
        ("one.two", ["o", "n", "e", "", ".t", "w", "o"]),  # what only began like it comes late
    ],
)
def test_a_stop_ends_the_text_before_it(raw: Tokenizer, text: str, pieces: list[str]) -> None:
    voice = Voice(raw, (". T", "\n\n"))
    assert [voice.hear(byte) for byte in text.encode()][: len(pieces)] == pieces
    assert voice.ended == (". T" in text)
    assert "".join(pieces) == text.split(". T")[0]


def test_the_earliest_of_several_stops_counts(raw: Tokenizer) -> None:
    voice = Voice(raw, ("c", "bcd"))
    assert "".join(voice.hear(byte) for byte in b"abcde") == "ab"


def test_the_prompt_is_opened_by_end_of_text(raw: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    hidden = Llama.hidden

    def spy(self: Llama, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tokens[0].tolist())
        return hidden(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Llama, "hidden", spy)
    list(generate(Llama(SHAPE), raw, Request(("ab",), max_new_tokens=3)))
    assert seen[0] == [256, 97, 98]
    assert [len(tokens) for tokens in seen] == [3, 1, 1]


def test_samples_differ_and_a_seed_repeats_them(raw: Tokenizer) -> None:
    model = Llama(SHAPE)

    def texts(seed: int) -> list[str]:
        return [each.text for each in last(model, raw, Request(("a",), max_new_tokens=30, samples=3, seed=seed))]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) == 3


def test_prompts_in_a_batch_go_on_as_each_does_alone(raw: Tokenizer) -> None:
    model, prompts = Llama(SHAPE), ("a", "something longer", "two words")
    together = last(model, raw, Request(prompts, max_new_tokens=20, samples=2, pick=Picker(0)))
    assert [(each.prompt, each.sample) for each in together] == [(prompt, n) for prompt in prompts for n in (1, 2)]
    for number, prompt in enumerate(prompts):
        (alone,) = last(model, raw, Request((prompt,), max_new_tokens=20, pick=Picker(0)))
        assert together[2 * number].tokens == together[2 * number + 1].tokens == alone.tokens
        assert together[2 * number].log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


def test_it_stops_when_all_have_ended(raw: Tokenizer) -> None:
    model = Llama(SHAPE)
    with torch.no_grad():
        model.model.norm.weight.fill_(0)  # every score is 0, so the first id is picked: a NUL byte, never the end
    assert len(last(model, raw, Request(("a",), max_new_tokens=5, pick=Picker(0)))[0].tokens) == 5
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
        model.lm_head.weight[raw.end] = 1e3 * model.hidden(torch.tensor([[256, 97]]))[0, -1]
    said = last(model, raw, Request(("a",), samples=2, max_new_tokens=50, pick=Picker(0)))
    assert [(each.text, each.tokens, each.ended) for each in said] == [("", [256], True)] * 2


@pytest.mark.slow
def test_greedy_text_is_hugging_faces_token_for_token(raw: Tokenizer) -> None:
    """Fifty prompts, alone and as one batch, cached; and without a cache, reading everything again."""
    config = SHAPE.model_copy(update={"layers": 2, "width": 48, "heads": 6, "kv_heads": 2, "head_width": 8, "vocab_size": 257})
    torch.manual_seed(3)
    model = Llama(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs: Any = LlamaForCausalLM(LlamaConfig(**described(config)))
    theirs.load_state_dict(model.state_dict())
    theirs.eval()
    chance = random.Random(0)
    prompts = ["".join(chance.choices("abcdefgh ,.", k=chance.randrange(1, 30))) for _ in range(50)]
    together = last(model, raw, Request(tuple(prompts), max_new_tokens=24, pick=Picker(0)))
    for prompt, each in zip(prompts, together, strict=True):
        ids = torch.tensor([[raw.end, *raw.encode(prompt).tolist()]])
        words = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": raw.end, "pad_token_id": raw.end}
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **words)[0, ids.shape[1] :].tolist()
        (alone,) = last(model, raw, Request((prompt,), max_new_tokens=24, pick=Picker(0)))
        assert each.tokens == alone.tokens == expected
        text = ids
        for token in expected:
            assert model(text)[0, -1].argmax().item() == token
            text = torch.cat([text, torch.tensor([[token]])], dim=1)

"""Text out of a model: streamed in whole characters, ended by the end-of-text token or a stop."""

import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamactl.checkpoint.hf_config import hf_config
from llamactl.config.schema import ModelConfig
from llamactl.inference.generate import Completion, Request, TokenStream, generate_samples
from llamactl.model.convert import convert_weights
from llamactl.model.decode import Sampler
from llamactl.model.llama import Llama
from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import Tokenizer

SHAPE = ModelConfig(n_layers=1, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16, context=64, vocab_size=384)


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return bpe.byte_tokenizer()


def last(model: Llama, raw: Tokenizer, request: Request) -> list[Completion]:
    said: list[Completion] = []
    streamed: dict[int, str] = {}
    for said in generate_samples(model, raw, request):
        for number, each in enumerate(said):
            streamed[number] = streamed.get(number, "") + each.new
    assert [each.text for each in said] == list(streamed.values())
    return said


def test_half_characters_wait_for_their_other_half(raw: Tokenizer) -> None:
    voice = TokenStream(raw)
    assert [voice.push(byte) for byte in "aé🦙".encode()] == ["a", "", "é", "", "", "", "🦙"]
    assert (voice.push(raw.end), voice.push(97), voice.with_end) == ("", "", True)


def test_what_waits_is_said_at_the_end(raw: Tokenizer) -> None:
    voice = TokenStream(raw)
    assert [voice.push(byte) for byte in "é".encode()[:1]] == [""]
    assert voice.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one. Two", ["o", "n", "e", "", "", ""]),  # the stop is never seen, nor is what follows it
        ("one.two", ["o", "n", "e", "", ".t", "w", "o"]),  # what only began like it comes late
    ],
)
def test_a_stop_ends_the_text_before_it(raw: Tokenizer, text: str, pieces: list[str]) -> None:
    voice = TokenStream(raw, (". T", "\n\n"))
    assert [voice.push(byte) for byte in text.encode()][: len(pieces)] == pieces
    assert voice.with_end == (". T" in text)
    assert "".join(pieces) == text.split(". T")[0]


def test_the_earliest_of_several_stops_counts(raw: Tokenizer) -> None:
    voice = TokenStream(raw, ("c", "bcd"))
    assert "".join(voice.push(byte) for byte in b"abcde") == "ab"


def test_the_prompt_is_opened_by_end_of_text(raw: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamactl.model.row_steps.native_step", lambda *_: None)  # which calls no layer
    seen: list[list[int]] = []
    hidden = Llama.hidden

    def spy(self: Llama, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tokens[0].tolist())
        return hidden(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Llama, "hidden", spy)
    list(generate_samples(Llama(SHAPE), raw, Request(("ab",), max_new_tokens=3)))
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
    together = last(model, raw, Request(prompts, max_new_tokens=20, samples=2, pick=Sampler(0)))
    assert [(each.prompt, each.sample) for each in together] == [(prompt, n) for prompt in prompts for n in (1, 2)]
    for number, prompt in enumerate(prompts):
        (alone,) = last(model, raw, Request((prompt,), max_new_tokens=20, pick=Sampler(0)))
        assert together[2 * number].tokens == together[2 * number + 1].tokens == alone.tokens
        assert together[2 * number].log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


@pytest.mark.parametrize(
    ("pick", "new", "kind"),
    [
        (Sampler(), 5, "f32"), (Sampler(1.5, top_k=50), 5, "f32"), (Sampler(1.0, top_p=0.9, min_p=0.01), 5, "f32"),
        (Sampler(0), 66, "f32"), (Sampler(0.9, repetition_penalty=1.3), 66, "f32"), (Sampler(), 5, "bf16"),
        (Sampler(), 5, "int8"),
    ],
    ids=str,
)  # fmt: skip
def test_a_sample_depends_on_its_prompt_number_and_seed(raw: Tokenizer, pick: Sampler, new: int, kind: str) -> None:
    """Not on how many samples there are, nor on other prompts: `generate_samples` puts no other length into one batch."""
    torch.manual_seed(1)
    model = convert_weights(Llama(SHAPE), kind)
    prompts = ("a", "b", "a long prompt " * 9, "a")

    def texts(prompts: tuple[str, ...], samples: int) -> list[tuple[str, int, list[int]]]:
        request = Request(prompts, max_new_tokens=new, samples=samples, seed=5, pick=pick)
        return [(each.prompt, each.sample, each.tokens) for each in last(model, raw, request)]

    together = texts(prompts, 2)
    assert [each for each in together if each[1] == 1] == [each for prompt in prompts for each in texts((prompt,), 1)]
    assert together == [each for prompt in prompts for each in texts((prompt,), 3)[:2]]
    if pick.temperature:
        assert together[0][2] != together[1][2]


def test_it_stops_when_all_have_ended(raw: Tokenizer) -> None:
    model = Llama(SHAPE)
    with torch.no_grad():
        model.model.norm.weight.fill_(0)  # every score is 0, so the first id is picked: a NUL byte, never the end
    assert len(last(model, raw, Request(("a",), max_new_tokens=5, pick=Sampler(0)))[0].tokens) == 5
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
        model.lm_head.weight[raw.end] = 1e3 * model.hidden(torch.tensor([[256, 97]]))[0, -1]
    said = last(model, raw, Request(("a",), samples=2, max_new_tokens=50, pick=Sampler(0)))
    assert [(each.text, each.tokens, each.with_end) for each in said] == [("", [256], True)] * 2


@pytest.mark.slow
def test_greedy_text_is_hugging_faces_token_for_token(raw: Tokenizer) -> None:
    """Fifty prompts, alone and as one batch, cached; and without a cache, reading everything again."""
    config = SHAPE.model_copy(
        update={"n_layers": 2, "dim": 48, "n_heads": 6, "n_kv_heads": 2, "head_dim": 8, "vocab_size": 257}
    )
    torch.manual_seed(3)
    model = Llama(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs: Any = LlamaForCausalLM(LlamaConfig(**hf_config(config)))
    theirs.load_state_dict(model.state_dict())
    theirs.eval()
    chance = random.Random(0)
    prompts = ["".join(chance.choices("abcdefgh ,.", k=chance.randrange(1, 30))) for _ in range(50)]
    together = last(model, raw, Request(tuple(prompts), max_new_tokens=24, pick=Sampler(0)))
    for prompt, each in zip(prompts, together, strict=True):
        ids = torch.tensor([[raw.end, *raw.encode(prompt).tolist()]])
        words = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": raw.end, "pad_token_id": raw.end}
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **words)[0, ids.shape[1] :].tolist()
        (alone,) = last(model, raw, Request((prompt,), max_new_tokens=24, pick=Sampler(0)))
        assert each.tokens == alone.tokens == expected
        text = ids
        for token in expected:
            assert model(text)[0, -1].argmax().item() == token
            text = torch.cat([text, torch.tensor([[token]])], dim=1)

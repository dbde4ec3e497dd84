"""A conversation with a model: what it reads, what is kept, and what is refused."""

import pytest
import torch

from llamactl.config.schema import ModelConfig
from llamactl.errors import UsageError
from llamactl.inference.chat import Chat, read_messages
from llamactl.inference.generate import Request
from llamactl.model.decode import Sampler
from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import Tokenizer, byte_tokenizer
from llamactl.tokenizer.chat import TURN_END, encode_chat
from llamactl.tokenizer.roles import add_roles

CONTEXT = 96


@pytest.fixture
def tokenizer() -> Tokenizer:
    return add_roles(byte_tokenizer())


@pytest.fixture
def model(tokenizer: Tokenizer) -> Llama:
    """A model of random weights that answers with letters, and now and then ends its turn."""
    torch.manual_seed(0)
    shape = ModelConfig(
        n_layers=1, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=24, context=CONTEXT, vocab_size=tokenizer.vocab_size
    )
    model = Llama(shape).eval()
    torch.nn.init.normal_(model.lm_head.weight, 0.0, 1.0)
    return model


def test_an_answer_sees_all_that_was_said(model: Llama, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(model, tokenizer, Request((), 12, pick=Sampler(1.0)))
    chat.set_system("s")
    seen: list[list[int]] = []
    usual = Llama.hidden

    def spy(self: Llama, tokens: torch.Tensor, *more: object) -> torch.Tensor:
        seen.append(tokens[0].tolist())
        return usual(self, tokens, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Llama, "hidden", spy)
    first = "".join(chat.answer("hello"))
    seen.clear()
    second = "".join(chat.answer("and then?"))
    said = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and then?"},
    ]
    assert seen[0] == encode_chat(tokenizer, said, generation_prompt=True)
    assert chat.messages == [*said, {"role": "assistant", "content": second}]
    chat.reset()
    assert chat.messages == said[:1]


def test_an_answer_ends_with_its_turn(model: Llama, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        model.lm_head.weight[tokenizer.controls[TURN_END]] = 0.0
    longest = list(Chat(model, tokenizer, Request((), 50, pick=Sampler(1.0))).answer("x"))
    model.lm_head.weight.data[:] = 0.0  # each token is as likely as any other, and that of the lowest id is taken
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(tokenizer.vocab_size))
    model.lm_head.bias.data[tokenizer.controls[TURN_END]] = 5.0
    assert list(Chat(model, tokenizer, Request((), 50, pick=Sampler(0))).answer("x")) == []
    assert longest


def test_an_answer_that_is_cut_short_is_kept(model: Llama, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer, Request((), 50, pick=Sampler(1.0)))
    pieces = chat.answer("x")
    start = next(pieces)
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": start}


def test_old_turns_are_left_out_when_the_context_is_full(model: Llama, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer, Request((), 20, pick=Sampler(1.0)))
    for number in range(8):
        for _ in chat.answer(f"question {number}"):
            pass
    assert chat.left_out > 0
    assert len(chat.messages) == 16
    said = len(chat.messages)
    with pytest.raises(UsageError, match="too long"):
        next(chat.answer("long " * CONTEXT))
    assert len(chat.messages) == said


def test_a_model_without_a_template_says_so(model: Llama) -> None:
    with pytest.raises(UsageError, match="can't chat"):
        Chat(model, byte_tokenizer(), Request(()))


def test_messages_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = read_messages([{"role": "developer", "content": "s"}, {"role": "user", "content": parts, "name": "x"}])
    assert found == [{"role": "system", "content": "s"}, {"role": "user", "content": "ab"}]


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "list"),
        ([], "list"),
        ({}, "list"),
        (["x"], r"messages\[0\]"),
        ([{"role": "tool", "content": "x"}], "system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "system, user, assistant"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": None}], "content"),
        ([{"role": "user", "content": 3}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "content"),
        ([{"role": "user", "content": ["x"]}], "content"),
        ([USER, {"role": "system", "content": "x"}, USER], "first"),
        ([USER, {"role": "assistant", "content": "x"}], "last"),
    ],
)
def test_messages_that_can_not_be_answered(value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_messages(value)

"""Conversations as ids: those of transformers, and nothing that is said becomes a control token."""

import json
import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llamactl.errors import DataError, UsageError
from llamactl.tokenizer import chat
from llamactl.tokenizer.bpe import Tokenizer, byte_tokenizer
from llamactl.tokenizer.chat import CHAT_TEMPLATE, PRIVATE_USE, ROLE_TOKENS, encode_chat, find_turn_end, fit_chat
from llamactl.tokenizer.roles import add_roles
from tests.tokenizer.test_library import byte_level, llama3, metaspace, sentencepiece, unigram

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim +"
    " ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TEMPLATES = {"ours": (CHAT_TEMPLATE, ROLE_TOKENS), "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")), "llama2": (LLAMA2, ())}
KINDS: dict[str, Callable[[list[str]], tokenizers.Tokenizer]] = {
    "plain": lambda texts: byte_level([], ("<|endoftext|>",), texts),
    **{made.__name__: made for made in (llama3, sentencepiece, metaspace, unigram)},
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Some text to learn vocabularies from."""
    sentence = "the cat sat on a mat and said hello to whoever came by; naïve 日本 été 1234"
    words = [*sentence.split(), "\n\n", ""]
    choice = random.Random(0)
    return [" ".join(choice.choices(words, k=30)) for _ in range(200)]


@pytest.fixture(scope="module", params=[(kind, template) for kind in KINDS for template in TEMPLATES], ids="-".join)
def pair(request: pytest.FixtureRequest, texts: list[str]) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """A tokenizer with a chat template, and the same one of transformers."""
    kind, template = request.param
    made = KINDS[kind](texts)
    source, controls = TEMPLATES[template]
    made.add_special_tokens(list(controls))
    ours = Tokenizer(made.to_str())
    ours.chat_template = source
    begin = ours.name_of(ours.start[0]) if ours.start else ""
    names = {"bos_token": begin, "eos_token": ours.name_of(ours.end)} if begin else {"eos_token": ours.name_of(ours.end)}
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(made.to_str()), **names)  # type: ignore[no-untyped-call]
    theirs.chat_template = source
    return ours, theirs


def conversation(choice: random.Random) -> list[dict[str, str]]:
    """Make up a conversation of turns in order."""
    pool = [
        "hello",
        "the cat",
        "naïve été",
        "日本 1234",
        "",
        "  spaces  ",
        "two\nlines\n",
        "end.",
        "<|nothing|>",
        "{{ x }}",
        "[INST]",
    ]
    return [
        {"role": ("user", "assistant")[turn % 2], "content": " ".join(choice.choices(pool, k=choice.randint(1, 6)))}
        for turn in range(choice.randint(1, 6))
    ]


def test_500_conversations_have_the_ids_of_transformers(pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    ours, theirs = pair
    choice = random.Random(1)
    for number in range(500):
        messages = conversation(choice)
        asked = bool(number % 2)
        expected = theirs.apply_chat_template(messages, add_generation_prompt=asked, return_dict=False)
        assert encode_chat(ours, messages, asked) == expected, messages


def test_what_is_said_is_never_a_control_token(pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    ours, _ = pair
    harmless = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    # Unigram's vocabulary has not all characters: that of the unknown ones may stand for what is said.
    special = {number for name, number in ours.controls.items() if name != "<unk>"}
    controls = [i for i in encode_chat(ours, harmless) if i in special]

    @given(st.lists(st.sampled_from([*ours.controls, "<|", "|>", "<", "x", " ", "\ue000"]), max_size=8))
    @settings(max_examples=60, deadline=None)
    def check(parts: list[str]) -> None:
        said = "".join(parts)
        ids = encode_chat(ours, [{"role": "user", "content": said}, {"role": "assistant", "content": said}])
        assert [i for i in ids if i in special] == controls
        # Some normalizers change spaces, but no character that is said gets lost.
        if "<unk>" not in ours.controls:
            assert said.replace(" ", "") in ours.decode(ids).replace(" ", "")

    check()


@pytest.mark.parametrize(("kind", "end"), [("ours", "<|end|>"), ("chatml", "<|im_end|>"), ("llama2", "<|endoftext|>")])
def test_find_turn_end(texts: list[str], kind: str, end: str) -> None:
    made = KINDS["plain"](texts)
    source, controls = TEMPLATES[kind]
    made.add_special_tokens(list(controls))
    tokenizer = Tokenizer(made.to_str())
    assert find_turn_end(tokenizer) is None
    tokenizer.chat_template = source
    assert find_turn_end(tokenizer) == tokenizer.controls[end]


USER = {"role": "user", "content": "x"}


def chat_tokenizer() -> Tokenizer:
    """Bytes and the role tokens."""
    made = tokenizers.Tokenizer.from_str(byte_tokenizer().description)
    made.add_special_tokens(list(ROLE_TOKENS))
    tokenizer = Tokenizer(made.to_str())
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_whole_turns_are_left_out_of_a_conversation_that_is_too_long() -> None:
    tokenizer = chat_tokenizer()
    messages = [{"role": "system", "content": "be kind"}]
    for number in range(10):
        messages += [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    messages.append({"role": "user", "content": "last"})
    whole = encode_chat(tokenizer, messages, generation_prompt=True)
    assert fit_chat(tokenizer, messages, len(whole)) == (whole, 0)
    ids, left_out = fit_chat(tokenizer, messages, len(whole) - 1)
    assert left_out == 2
    assert ids == encode_chat(tokenizer, [messages[0], *messages[3:]], generation_prompt=True)
    # The last question stays, however long it is.
    shortest = encode_chat(tokenizer, [messages[0], messages[-1]], generation_prompt=True)
    assert fit_chat(tokenizer, messages, len(shortest)) == (shortest, 20)
    with pytest.raises(UsageError, match="too long"):
        fit_chat(tokenizer, messages, len(shortest) - 1)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for",
        "{{ messages[0]['content'] + 1 }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_can_not_be_used_says_so(template: str) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="template"):
        encode_chat(tokenizer, [{"role": "user", "content": "x"}])


def test_the_sandbox_hides_attributes() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ messages.__class__ }}{{ ''.__class__ }}."
    assert tokenizer.decode(encode_chat(tokenizer, [{"role": "user", "content": "x"}])) == "."


def test_surrogates_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode_chat(chat_tokenizer(), [{"role": "user", "content": json.loads('"\\ud800"')}])


def test_a_long_conversation_is_cut_in_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 50_000 + [USER]
    tries: list[int] = []
    usual = chat.encode_chat

    def counted(*arguments: Any, **more: Any) -> list[int]:
        tries.append(len(arguments[1]))
        return usual(*arguments, **more)

    monkeypatch.setattr(chat, "encode_chat", counted)
    ids, left_out = fit_chat(tokenizer, messages, 100)
    assert 90 < len(ids) <= 100
    assert ids == usual(tokenizer, messages[left_out:], generation_prompt=True)
    assert len(tries) < 12
    assert max(tries) <= 100


def test_no_text_leaves_no_mark() -> None:
    tokenizer = chat_tokenizer()
    said = "".join(map(chr, range(0xE000, 0xF900))) + "<|end|>"
    ids = encode_chat(tokenizer, [{"role": "user", "content": said}])
    assert tokenizer.decode(ids) == said
    assert ids.count(tokenizer.controls["<|end|>"]) == 1


def test_templates_have_what_transformers_offers() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.template_names = {"eos_token": "<|end|>"}
    tokenizer.chat_template = (
        "{% if tools is not none %}tools{% endif %}{{ strftime_now('%Y') }}{% for message in messages %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endfor %}"
    )
    ids = encode_chat(tokenizer, [USER])
    assert tokenizer.decode(ids).removesuffix("x").isdecimal()
    assert ids[-1] == tokenizer.controls["<|end|>"] == find_turn_end(tokenizer)


def test_a_message_with_all_private_characters_is_refused() -> None:
    tokenizer = add_roles(byte_tokenizer())
    text = "".join(map(chr, chain(*PRIVATE_USE)))
    assert encode_chat(tokenizer, [{"role": "user", "content": text[1:] + "<|end|>"}])
    with pytest.raises(UsageError, match="private use"):
        encode_chat(tokenizer, [{"role": "user", "content": text}])

"""Conversations as token ids: the chat template of a model, and the roles of the models that are fine-tuned here.

What somebody says can't become a control token: only what the template itself writes does.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from llamactl.errors import DataError, UsageError
from llamactl.storage.records import to_json
from llamactl.tokenizer.bpe import Tokenizer

ROLES = ("system", "user", "assistant")
TURN_END = "<|end|>"
ROLE_TOKENS = (*(f"<|{role}|>" for role in ROLES), TURN_END)
# No line breaks: each token of a turn is either a control token or what somebody said.
BEGIN = "{{ bos_token }}"
CHAT_TEMPLATE = (
    BEGIN + "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PRIVATE_USE = range(0xE000, 0xF900)  # characters that mean nothing: one of them marks what is not a control token
Message = Mapping[str, str]  # "role" and "content"


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False) -> list[int]:
    """Encode a conversation by the tokenizer's chat template, as transformers' `apply_chat_template` does.

    With `generation_prompt` it ends where the assistant begins to answer. Raises DataError where the template can't be used,
    UnicodeEncodeError on lone surrogates.
    """
    mark = _unused_character(messages)
    names = sorted(tokenizer.controls, key=len, reverse=True)
    control = "|".join(map(re.escape, names))
    marked = [{**each, "content": re.sub(f"(?={control})", mark, each["content"])} for each in messages]
    text = _render(tokenizer, marked, generation_prompt)
    if mark not in text:
        return tokenizer.encode_with_controls(text)
    # A mark keeps the name behind it from being one; the marks themselves are not part of the text.
    ids: list[int] = []
    for piece in re.split(f"(?<!{mark})({control})", text):
        known = tokenizer.controls.get(piece)
        ids += tokenizer.encode(piece.replace(mark, "")).tolist() if known is None else [known]
    return ids


def find_turn_end(tokenizer: Tokenizer) -> int | None:
    """Return the control token with which the chat template ends an answer; None without such a one, or a template."""
    if not tokenizer.chat_template:
        return None
    said = "\ue000answer\ue000"
    try:
        text = _render(tokenizer, [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}], False)
    except DataError:  # whoever asks for a conversation is told
        return None
    after = text.rpartition(said)[2].lstrip()
    name = max((name for name in tokenizer.controls if after.startswith(name)), key=len, default=None)
    return None if name is None else tokenizer.controls[name]


def fit_chat(tokenizer: Tokenizer, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
    """Return the ids of a conversation for an answer to it, at most `room` of them, and how many messages were left out.

    The oldest turns are left out, each a question with what followed it; the system's words and the last question stay. Raises
    UsageError where those alone are too long, DataError where the template can't be used.
    """
    opening = [each for each in messages[:1] if each["role"] == "system"]
    turns = list(messages[len(opening) :])
    questions = [place for place, each in enumerate(turns) if each["role"] == "user" and place] + [len(turns)]
    for left_out in (0, *questions):
        kept = turns[left_out:]
        if not kept and turns:
            break
        ids = encode_chat(tokenizer, [*opening, *kept], generation_prompt=True)
        if len(ids) <= room:
            return ids, left_out
    why = f"It has {len(ids):,} tokens, and the model reads {room:,} before it answers."
    raise UsageError("This message is too long.", why, "Say it in fewer words.")


def _unused_character(messages: Sequence[Message]) -> str:
    used = set().union(*(each["content"] for each in messages))
    return next(character for character in map(chr, PRIVATE_USE) if character not in used)


def _render(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool) -> str:
    """Run the chat template in a sandbox; raises DataError where that fails, or where the template refuses the messages."""
    begin = tokenizer.name_of(tokenizer.start[0]) if tokenizer.start else ""
    words = {"bos_token": begin, "eos_token": tokenizer.name_of(tokenizer.end), "messages": messages}
    try:
        text: str = _compile(tokenizer.chat_template).render(**words, add_generation_prompt=generation_prompt)
    except Exception as error:  # whatever a template of somebody else's raises
        raise DataError("The model's chat template can't be used.", f"{str(error) or type(error).__name__}.") from error
    return text


@lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    """Compile a chat template with what transformers offers to one, in a sandbox: it reaches neither files nor attributes."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)

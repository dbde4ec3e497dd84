"""Conversations as token ids: the chat template of a model, and the roles of the models that are fine-tuned here.

What somebody says can't become a control token: only what the template itself writes does.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain
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
# Characters that mean nothing: one that nobody says marks what is not a control token.
PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
Message = Mapping[str, str]  # "role" and "content"


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False) -> list[int]:
    """Encode a conversation by the tokenizer's chat template, as transformers' `apply_chat_template` does.

    With `generation_prompt` it ends where the assistant begins to answer. Raises DataError where the template can't be used,
    UsageError where it has all characters for private use, UnicodeEncodeError on lone surrogates.
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


@lru_cache(maxsize=8)
def find_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens after which nothing follows: that which ends a text, and that which ends an answer."""
    return frozenset({tokenizer.end} | ({turn} if (turn := find_turn_end(tokenizer)) is not None else set()))


def fit_chat(tokenizer: Tokenizer, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
    """Return the ids of a conversation for an answer to it, at most `room` of them, and how many messages were left out.

    The oldest turns are left out, each a question with what followed it; the system's words and the last question stay. Raises
    UsageError where those alone are too long, DataError where the template can't be used.
    """
    opening = [each for each in messages[:1] if each["role"] == "system"]
    turns = list(messages[len(opening) :])
    starts = [0, *(place for place, each in enumerate(turns) if place and each["role"] == "user")]

    def encode_from(start: int) -> list[int]:
        return encode_chat(tokenizer, [*opening, *turns[start:]], generation_prompt=True)

    # A turn has a token at least, so that of a hundred thousand only the last ones are encoded.
    starts = [start for start in starts if len(turns) - start <= room] or starts[-1:]
    # The later a conversation begins, the shorter it is.
    first = bisect_left(starts, True, key=lambda start: len(encode_from(start)) <= room)
    ids = encode_from(starts[min(first, len(starts) - 1)])
    if len(ids) <= room:
        return ids, starts[first]
    why = f"It has {len(ids):,} tokens, and the model reads {room:,} before it answers."
    raise UsageError("This message is too long.", why, "Say it in fewer words.")


def _unused_character(messages: Sequence[Message]) -> str:
    used = set().union(*(each["content"] for each in messages))
    for character in map(chr, chain(*PRIVATE_USE)):
        if character not in used:
            return character
    raise UsageError("This conversation can't be read.", "It has all characters for private use, of which one must be free.")


def _render(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool) -> str:
    """Run the chat template in a sandbox; raises DataError where that fails, or where the template refuses the messages."""
    begin = tokenizer.name_of(tokenizer.start[0]) if tokenizer.start else ""
    names = {"bos_token": begin, "eos_token": tokenizer.name_of(tokenizer.end), **tokenizer.template_names}
    words: dict[str, Any] = {**names, "messages": messages, "tools": None, "documents": None}
    try:
        text: str = _compile(tokenizer.chat_template).render(**words, add_generation_prompt=generation_prompt)
    except Exception as error:  # whatever a template of somebody else's raises
        raise DataError("The model's chat template can't be used.", f"{str(error) or type(error).__name__}.") from error
    return text


@lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    """Compile a chat template with what transformers offers to one, in a sandbox: it reaches neither files nor attributes."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class Generation(Extension):
        """The tag with which some templates mark answers for training: what it encloses is written as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda words: datetime.now().strftime(words)  # Llama 3.2 names the day
    return environment.from_string(template)

"""Talk to a model that was fine-tuned on conversations, by its chat template."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from llamactl.errors import DataError, UsageError
from llamactl.inference.generate import Request, TokenStream, sample_seed
from llamactl.model.decode import decode_tokens
from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import ROLES, Message, fit_chat

LEAST_ANSWER = 4  # at least one in so many tokens of the context is for the answer


@dataclass
class Chat:
    """A conversation with a model: what was said so far, and how the model answers."""

    model: Llama
    tokenizer: Tokenizer
    request: Request  # its prompts and samples play no part
    messages: list[Message] = field(default_factory=list)
    left_out: int = 0  # oldest messages that the last answer did not see

    def __post_init__(self) -> None:
        """Raise UsageError for a model without a chat template."""
        if not self.tokenizer.chat_template:
            why = "It was not fine-tuned on conversations: it has no chat template, and continues texts."
            raise UsageError("This model can't chat.", why, 'Continue a text: llamactl sample "Once upon a time"')

    def set_system(self, text: str) -> None:
        """Start a new conversation under a system message; without a text there is none."""
        self.messages[:] = [{"role": "system", "content": text}] if text else []

    def reset(self) -> None:
        """Start a new conversation under the same system message."""
        self.messages[:] = [each for each in self.messages[:1] if each["role"] == "system"]

    def answer(self, said: str) -> Generator[str, None, None]:
        """Say something and yield the pieces of the answer; both are then part of the conversation, also when it is cut short.

        Raises UsageError where what was said does not fit into the context, DataError where the scores are not numbers.
        """
        self.messages.append({"role": "user", "content": said})
        try:
            ids, self.left_out = prompt_of(self.model, self.tokenizer, self.messages, self.request.max_new_tokens)
        except BaseException:  # Ctrl-C, too
            self.messages.pop()
            raise
        pieces: list[str] = []
        try:
            for piece in _stream(self.model, self.tokenizer, ids, self.request, len(self.messages)):
                pieces.append(piece)
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})


def prompt_of(model: Llama, tokenizer: Tokenizer, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[int], int]:
    """Return the ids of a conversation for an answer to it, and how many of its messages were left out so that it fits.

    Raises UsageError where the last message alone leaves too little of the context for an answer.
    """
    context = model.config.context
    return fit_chat(tokenizer, messages, context - max(1, min(max_new_tokens, context // LEAST_ANSWER)))


def _stream(model: Llama, tokenizer: Tokenizer, ids: list[int], request: Request, turn: int) -> Iterator[str]:
    """Yield what each token adds to the answer."""
    seed = sample_seed(request.seed, tokenizer.decode(ids), turn)
    voice = TokenStream(tokenizer, request.stops)
    room = min(request.max_new_tokens, model.config.context - len(ids))
    for step in islice(decode_tokens(model, [ids], tokenizer.vocab_size, request.pick, [seed]), room):
        if torch.isnan(step.log_probabilities).any():
            raise DataError("The model can't answer: its scores are not numbers.", "Its weights are too large.")
        if piece := voice.push(int(step.tokens)):
            yield piece
        if voice.with_end:
            return
    if piece := voice.finish():
        yield piece


def read_messages(value: object) -> list[Message]:
    """Check a conversation that waits for an answer: a list of {"role", "content"}, or of contents in parts of text.

    Raises UsageError with the place of what is wrong.
    """
    if not isinstance(value, list) or not value:
        raise UsageError("messages: a conversation is a list of messages.")
    messages = [_read_message(each, f"messages[{number}]") for number, each in enumerate(value)]
    if any(each["role"] == "system" for each in messages[1:]):
        raise UsageError("messages: only the first one can be the system's.")
    if messages[-1]["role"] != "user":
        raise UsageError("messages: the last one must be the user's, which is answered.")
    return messages


def _read_message(value: object, place: str) -> Message:
    if not isinstance(value, dict):
        raise UsageError(f'{place}: a message is {{"role": ..., "content": ...}}.')
    role, content = value.get("role"), value.get("content")
    role = "system" if role == "developer" else role  # as OpenAI calls it now
    if role not in ROLES:
        raise UsageError(f"{place}.role: one of {', '.join(ROLES)}.")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else None  # an image, say
    if not isinstance(content, str):
        raise UsageError(f"{place}.content: a text.")
    return {"role": role, "content": content}

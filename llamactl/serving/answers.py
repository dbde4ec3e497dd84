"""Answers as OpenAI's clients read them: of completions and of chat completions, as a whole or in pieces."""

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenDetail:
    """A token: its name, its bytes, its log-probability (None for the first of a prompt) and the likeliest ones there.

    `offset` is the number of characters before it in the text of its choice; parts of a character share that of the character.
    """

    name: str
    content: bytes
    log_probability: float | None
    offset: int = 0
    top: tuple["TokenDetail", ...] = ()


@dataclass(frozen=True)
class Delta:
    """What is new of one choice: text, its tokens, and why it ended, "stop" or "length"; empty while it has not."""

    choice: int
    text: str
    tokens: tuple[TokenDetail, ...] = ()
    finish: str = ""
    generated: int = 0  # tokens, with those that have no text


@dataclass(frozen=True)
class Answer:
    """The answer to a completion request: the model's name, an identity and the tokens of the prompts."""

    name: str
    identity: str
    prompt_tokens: int
    details: bool  # with log-probabilities
    prefix, kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def choice_json(self, delta: Delta) -> dict[str, Any]:
        """Return a choice."""
        return {"index": delta.choice, "text": delta.text, **self._ending(delta)}

    def piece_json(self, delta: Delta, first: bool) -> dict[str, Any]:
        """Return what is new of a choice, in a stream; `first` is whether it is the first such piece."""
        return self.choice_json(delta)

    def body(self, choices: list[dict[str, Any]], generated: int | None = None, piece: bool = False) -> dict[str, Any]:
        """Return an answer, or a piece of a stream, with the tokens used where those that were generated are counted."""
        kind = self.piece_kind if piece else self.kind
        body = {"id": self.identity, "object": kind, "created": int(time.time()), "model": self.name, "choices": choices}
        if generated is not None:
            total = self.prompt_tokens + generated
            used = {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total}
            body["usage"] = used
        return body

    def _ending(self, delta: Delta) -> dict[str, Any]:
        return {"logprobs": self._logprobs(delta) if self.details else None, "finish_reason": delta.finish or None}

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        """Return the tokens as OpenAI's clients read them, and their bytes, which the page makes characters of."""
        return {
            "tokens": [token.name for token in delta.tokens],
            "token_logprobs": [token.log_probability for token in delta.tokens],
            "top_logprobs": [{each.name: each.log_probability for each in token.top} or None for token in delta.tokens],
            "text_offset": [token.offset for token in delta.tokens],
            "bytes": [list(token.content) for token in delta.tokens],
            "top_bytes": [{each.name: list(each.content) for each in token.top} for token in delta.tokens],
        }


class ChatAnswer(Answer):
    """The answer to a chat completion request."""

    prefix, kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice_json(self, delta: Delta) -> dict[str, Any]:
        """Return a choice: a message of the assistant."""
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {"index": delta.choice, "message": message, **self._ending(delta)}

    def piece_json(self, delta: Delta, first: bool) -> dict[str, Any]:
        """Return what is new of a message."""
        role = {"role": "assistant"} if first else {}
        return {"index": delta.choice, "delta": {**role, "content": delta.text}, **self._ending(delta)}

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        rows = [{**_row(token), "top_logprobs": [_row(each) for each in token.top]} for token in delta.tokens]
        return {"content": rows, "refusal": None}


def _row(token: TokenDetail) -> dict[str, Any]:
    return {"token": token.name, "logprob": token.log_probability, "bytes": list(token.content)}
